"""The tables of docs/plan.md name the cases that the tests run, and no others."""

from pathlib import Path

import pytest

from coordinator.compiler.optimizers import OPTIMIZERS
from tests.document import replaced
from tests.models import MODELS
from tests.parity.layers import LAYERS, REFUSED
from tests.parity.losses import LOSSES
from tests.parity.tables import written

DOCUMENT = Path(__file__).parents[2] / "docs" / "plan.md"


def test_the_tables_are_up_to_date() -> None:
    text = DOCUMENT.read_text()
    assert written(text) == text, "run python -m tests.parity.tables docs/plan.md"


def test_every_case_is_in_the_tables() -> None:
    text = written(DOCUMENT.read_text())
    missing = [
        name for name in (*LAYERS, *REFUSED, *LOSSES, *OPTIMIZERS, *MODELS) if name not in text
    ]
    assert not missing


def test_every_whole_model_is_measured() -> None:
    text = DOCUMENT.read_text()
    measured = text.partition("<!-- measured")[2].partition("<!-- end -->")[0]
    rows = [line.split("|")[1].strip() for line in measured.splitlines() if line.startswith("| ")]
    assert rows[2:] == list(MODELS), "run make zoo"


def test_a_document_without_the_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match="lacks the line"):
        replaced("no marks", "<!-- begin -->", "| a |\n")
