"""Learning rates by round: a pure function, held against torch's schedulers."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from coordinator.engine.directives import hyperparameters
from coordinator.engine.live import JobRun
from coordinator.engine.schedule import round_rate
from coordinator.jobs.train_spec import Optimizer, Schedule, Train

COUNT, WARMUP, BASE = 12, 3, 0.4


def rates(count: int = COUNT, **settings: Any) -> list[float]:
    schedule = Schedule(**settings)
    return [
        round_rate(schedule, BASE, version, count).learning_rate for version in range(1, count + 1)
    ]


def torch_rates(count: int, make: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    scheduler, found = make(optimizer), []
    for _ in range(count):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


kinds = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"name": "cosine", "final_scale": 0.1},
         lambda o: kinds.CosineAnnealingLR(o, COUNT, eta_min=0.1 * BASE)),
        ({"name": "linear", "final_scale": 0.25},
         lambda o: kinds.LinearLR(o, 1.0, 0.25, total_iters=COUNT)),
        ({"name": "step", "factor": 0.5, "every_rounds": 4}, lambda o: kinds.StepLR(o, 4, 0.5)),
        ({"name": "exponential", "factor": 0.9}, lambda o: kinds.ExponentialLR(o, 0.9)),
        ({"name": "constant"}, lambda o: kinds.ConstantLR(o, 1.0)),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)  # fmt: skip
def test_rounds_take_the_rates_that_epochs_take_in_torch(settings: Any, make: Any) -> None:
    assert rates(**settings) == pytest.approx(torch_rates(COUNT, make))
    after_warmup = rates(COUNT + WARMUP, warmup_rounds=WARMUP, **settings)[WARMUP:]
    assert after_warmup == pytest.approx(rates(**settings))


def test_the_warmup_rises_in_equal_steps_to_the_full_rate() -> None:
    found = rates(name="constant", warmup_rounds=4)
    assert found[:5] == pytest.approx([BASE / 4, BASE / 2, 3 * BASE / 4, BASE, BASE])


def test_every_rate_has_its_reason() -> None:
    schedule = Schedule(name="cosine", warmup_rounds=2)
    said = [round_rate(schedule, BASE, version, 5).reason for version in (1, 2, 3, 5)]
    assert said == [
        "warmup, round 1 of 2", "warmup, round 2 of 2", "cosine, round 1 of 3",
        "cosine, round 3 of 3",
    ]  # fmt: skip
    assert round_rate(None, BASE, 7, 5).learning_rate == BASE


def test_the_assignment_carries_the_rate_and_the_proximal_term() -> None:
    train = Train(
        optimizer=Optimizer(name="sgd", learning_rate=BASE), local_steps=1, batch_size=8,
        schedule=Schedule(name="exponential", factor=0.5), proximal=0.01,
    )  # fmt: skip
    run = SimpleNamespace(
        spec=SimpleNamespace(train=train, rounds=SimpleNamespace(count=COUNT)),
        record=SimpleNamespace(rounds_committed=2),
    )
    found = hyperparameters(cast(JobRun, run))
    assert found == pytest.approx({"learning_rate": BASE / 4, "proximal": 0.01})


def test_every_rate_is_positive_and_a_version_too_many_takes_the_last() -> None:
    for name in ("cosine", "linear", "step", "exponential"):
        found = rates(name=name)
        assert all(math.isfinite(rate) and rate > 0 for rate in found)
        assert round_rate(Schedule(name=name), BASE, COUNT + 1, COUNT).learning_rate == found[-1]
