"""A data set that leaves one example for the last batch, where the model normalizes by batch."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from headwater.batch import TensorSignature
from headwater.plan import Plan
from tests.parity.steps import BACKENDS, started
from tests.plans import compile_case, opened
from tests.zoo import Case, batch


def network(momentum: float | None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=momentum), nn.Linear(4, 3))


CASES = {
    momentum: Case(
        lambda momentum=momentum: network(momentum), (TensorSignature("x", (6,), "float32"),),
        (TensorSignature("label", (), "int64", 3),),
    )
    for momentum in (0.1, None)
}  # fmt: skip


@cache
def plan_of(momentum: float | None) -> Plan:
    return opened(compile_case(CASES[momentum], "normalized"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("momentum", CASES)
def test_one_example_leaves_the_running_variance_as_it_was(
    momentum: float | None, backend: str
) -> None:
    plan, case = plan_of(momentum), CASES[momentum]
    trainer = started(plan, backend)
    trainer.train_step(batch(case, 5, 0), {}, 0)
    before = plan.layout.unflatten(trainer.weights())
    assert np.isfinite(trainer.train_step(batch(case, 1, 1), {}, 1)["loss"])
    after = plan.layout.unflatten(trainer.weights())
    np.testing.assert_array_equal(after["1.running_var"], before["1.running_var"])
    assert not np.array_equal(after["1.running_mean"], before["1.running_mean"])
    trainer.train_step(batch(case, 5, 2), {}, 2)
    moved = plan.layout.unflatten(trainer.weights())["1.running_var"]
    assert np.isfinite(moved).all() and not np.array_equal(moved, after["1.running_var"])
    assert np.isfinite(trainer.evaluate_step(batch(case, 5, 3))["loss"])
