import re
import tomllib

import pytest

from coordinator.jobs.job_file import parse_job
from coordinator.jobs.reference import with_reference


@pytest.fixture
def document(pytestconfig: pytest.Config) -> str:
    return (pytestconfig.rootpath / "docs" / "jobs.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_rules(document: str) -> None:
    assert document == with_reference(document), (
        "run: python -m coordinator.jobs.reference docs/jobs.md"
    )


def test_the_example_is_a_job(document: str) -> None:
    found = re.search(r"```toml\n(.*?)```", document, re.DOTALL)
    assert found is not None
    spec = parse_job(found.group(1), "jobs.md")
    assert spec.name == tomllib.loads(found.group(1))["name"]


def test_every_key_has_a_row(document: str) -> None:
    for key in ("name", "factory", "shape", "learning_rate", "local_epochs", "quorum", "where"):
        assert re.search(rf"^\| `{key}` \| .+ \| .+ \| .+ \|$", document, re.MULTILINE)
