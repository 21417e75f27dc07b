"""Every loss trains on both runtimes as eager torch does. The names are those of docs/plan.md."""

from functools import cache

import pytest

from coordinator.compiler.losses import LOSS_NAMES
from headwater.errors import CompileError
from headwater.plan import Plan
from tests.parity.losses import LOSSES, NUMBERS, Tried, hardest
from tests.parity.steps import BACKENDS, assert_trains_like_torch
from tests.plans import compile_case, opened

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning"),
]


@cache
def plan_of(name: str) -> Plan:
    return opened(compile_case(LOSSES[name].case(), "loss"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_trains_like_eager_torch(name: str, backend: str) -> None:
    assert_trains_like_torch(plan_of(name), LOSSES[name].case(), backend)


def test_every_named_loss_is_tried() -> None:
    assert {one.loss for one in LOSSES.values() if isinstance(one.loss, str)} | {
        "hinge_embedding_loss"
    } == set(LOSS_NAMES)


@pytest.mark.parametrize(
    ("tried", "words"),
    [
        (Tried("mse_loss", NUMBERS, {"beta": 1.0}), "mse_loss has no setting 'beta'; it has red"),
        (Tried("mse_loss", NUMBERS, {"reduction": "sum"}), "the mean over its examples; allowed"),
        (
            Tried("mse_los", NUMBERS, {"beta": 1.0}),
            "loss 'mse_los' is not known, did you mean \"mse_loss\"",
        ),
        (Tried(hardest, NUMBERS, {"beta": 1.0}), "a loss of your own has no settings"),
    ],
)
def test_a_setting_is_refused_in_these_words(tried: Tried, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        tried.case()
