"""The learning rate of a round: a pure function of the job's schedule and the round.

It counts rounds that train: the n-th makes version n, however many were abandoned before.
    warmup: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
        arXiv:1706.02677, 2017: the rate rises in equal steps; the schedule begins after it.
    cosine: Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
        without restarts.
The others are those of torch.optim.lr_scheduler, with rounds for epochs.
"""

from dataclasses import dataclass
from math import cos, pi

from coordinator.jobs.train_spec import Schedule


@dataclass(frozen=True)
class RoundRate:
    """A learning rate, and why it is this one."""

    learning_rate: float
    reason: str


def round_rate(schedule: Schedule | None, base: float, version: int, count: int) -> RoundRate:
    """The learning rate with which version `version` (from 1) of `count` is trained.

    `base` is the optimizer's own. A version beyond the last takes the last one's rate.
    """
    if schedule is None:
        return RoundRate(base, "no schedule")
    warmup = schedule.warmup_rounds
    if version <= warmup:
        return RoundRate(base * version / warmup, f"warmup, round {version} of {warmup}")
    done, total = min(version, count) - warmup - 1, max(1, count - warmup)
    reason = f"{schedule.name}, round {done + 1} of {total}"
    return RoundRate(base * _scale(schedule, done, total), reason)


def _scale(schedule: Schedule, done: int, total: int) -> float:
    """The part of the learning rate that is left when `done` of `total` rounds are over."""
    match schedule.name:
        case "cosine":
            final = schedule.setting("final_scale")
            return final + (1 - final) * (1 + cos(pi * done / total)) / 2
        case "linear":
            return 1 + (schedule.setting("final_scale") - 1) * done / total
        case "step":
            return schedule.setting("factor") ** (done // int(schedule.setting("every_rounds")))
        case "exponential":
            return schedule.setting("factor") ** done
    return 1.0
