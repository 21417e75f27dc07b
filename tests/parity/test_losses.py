"""Every named loss trains on both runtimes as eager torch does."""

from functools import cache

import pytest
from torch import nn

from coordinator.compiler.losses import LOSS_NAMES
from headwater.batch import TensorSignature
from headwater.plan import Plan
from tests.parity.layer import CLASS, VECTOR
from tests.parity.steps import BACKENDS, assert_trains_like_torch
from tests.plans import compile_case, opened
from tests.zoo import Case

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning"),
]


@cache
def case_of(loss: str) -> Case:
    bounded = nn.Sigmoid if loss == "binary_cross_entropy" else lambda: nn.LogSoftmax(1)
    logits = loss in ("cross_entropy", "binary_cross_entropy_with_logits")
    classes = loss in ("cross_entropy", "nll_loss")
    return Case(
        lambda: nn.Sequential(nn.Linear(6, 3), nn.Identity() if logits else bounded()),
        (TensorSignature("x", VECTOR, "float32"),),
        (CLASS if classes else TensorSignature("y", (3,), "bool"),),
        loss=loss,
        metrics=(),
    )


@cache
def plan_of(loss: str) -> Plan:
    return opened(compile_case(case_of(loss), "loss"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_a_loss_trains_like_eager_torch(loss: str, backend: str) -> None:
    assert_trains_like_torch(plan_of(loss), case_of(loss), backend)
