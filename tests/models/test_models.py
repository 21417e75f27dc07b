"""Whole models, in their tiny size, train on both runtimes as eager torch does.

`make test` runs those in `EVERY_TIME`; `make zoo` runs all, after benchmarks/plan has compiled and
measured them in full size.
"""

import os
from functools import cache

import pytest

from headwater.plan import Plan
from tests.models import MODELS
from tests.parity.steps import BACKENDS, assert_trains_like_torch
from tests.plans import compile_case, opened

pytestmark = pytest.mark.slow

EVERY_TIME = (
    "MobileNetV3-small", "BERT-tiny", "U-Net", "two-tower recommender", "MLP on tabular data",
)  # fmt: skip
"""What the layers and the models of tests/zoo.py leave out: squeeze-and-excitation, a padding mask
and a loss that ignores tokens, skipped connections, several inputs, a loss over the whole batch."""
RUNS_ALL = bool(os.environ.get("HEADWATER_ZOO"))
"""`make zoo` sets the variable."""

_NAMES = tuple(MODELS) if RUNS_ALL else EVERY_TIME


@cache
def plan_of(name: str) -> Plan:
    return opened(compile_case(MODELS[name].tiny, "model"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", _NAMES)
def test_a_model_trains_like_eager_torch(name: str, backend: str) -> None:
    assert_trains_like_torch(plan_of(name), MODELS[name].tiny, backend)
