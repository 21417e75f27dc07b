"""Whole models train on both runtimes as eager torch does.

`make test` runs the tiny size of those in `EVERY_TIME`; `make zoo` runs all, in both sizes.
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
    "MobileNetV3-small",
    "BERT-tiny",
    "U-Net",
    "two-tower recommender",
    "MLP on tabular data",
)
"""What the layers and the models of tests/zoo.py leave out: squeeze-and-excitation, a padding mask
and a loss that ignores tokens, skipped connections, several inputs of several kinds and a loss over
the whole batch."""
ALL = "HEADWATER_ZOO"
"""The environment variable that asks for every model; `make zoo` sets it."""

_NAMES = tuple(MODELS) if os.environ.get(ALL) else EVERY_TIME


@cache
def plan_of(name: str) -> Plan:
    return opened(compile_case(MODELS[name].tiny, "model"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", _NAMES)
def test_a_model_trains_like_eager_torch(name: str, backend: str) -> None:
    assert_trains_like_torch(plan_of(name), MODELS[name].tiny, backend)
