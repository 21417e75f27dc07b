"""`[train]` of a job file: what a client does with its data in one round."""
# ruff: noqa: RUF009  (`key` returns a dataclass field, which is what belongs there)

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from coordinator.jobs.builder import Fault
from coordinator.jobs.key import key

Setting = float | bool | tuple[float, ...]

OPTIMIZER_SETTINGS: Mapping[str, Mapping[str, Setting]] = MappingProxyType(
    {
        "sgd": {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0},
        "adam": {
            "betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0.0, "amsgrad": False,
        },
        "adamw": {
            "betas": (0.9, 0.999), "epsilon": 1e-8, "weight_decay": 0.01, "amsgrad": False,
        },
        "adagrad": {
            "learning_rate_decay": 0.0, "initial_accumulator": 0.0, "epsilon": 1e-10,
            "weight_decay": 0.0,
        },
        "rmsprop": {
            "alpha": 0.99, "epsilon": 1e-8, "momentum": 0.0, "centered": False,
            "weight_decay": 0.0,
        },
    }
)  # fmt: skip
"""The settings of each optimizer with their defaults, which are torch's."""

SCHEDULE_SETTINGS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "constant": {},
        "cosine": {"final_scale": 0.0},
        "linear": {"final_scale": 0.0},
        "step": {"factor": 0.1, "every_rounds": 10},
        "exponential": {"factor": 0.95},
    }
)
"""The settings of each schedule with their defaults."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer of the local steps. Its settings mean what they mean in torch."""

    name: str = key("Which one.", choices=tuple(OPTIMIZER_SETTINGS))
    learning_rate: float = key("The step size.", above=0)
    momentum: float | None = key(
        "For sgd and rmsprop: the momentum factor.", value=None, minimum=0, below=1, default="0"
    )
    dampening: float | None = key(
        "For sgd: how much of the gradient the momentum leaves out.",
        value=None,
        minimum=0,
        below=1,
        default="0",
    )
    nesterov: bool | None = key(
        "For sgd: Nesterov momentum; needs momentum and no dampening.", value=None, default="false"
    )
    weight_decay: float | None = key(
        "L2 penalty; decoupled from the gradient in adamw.",
        value=None,
        minimum=0,
        default="0; 0.01 for adamw",
    )
    betas: tuple[float, float] | None = key(
        "For adam and adamw: decay rates of the two running means.",
        value=None,
        minimum=0,
        below=1,
        default="[0.9, 0.999]",
    )
    amsgrad: bool | None = key(
        "For adam and adamw: divide by the largest second moment so far.",
        value=None,
        default="false",
    )
    alpha: float | None = key(
        "For rmsprop: decay rate of the running mean of squares.",
        value=None,
        minimum=0,
        below=1,
        default="0.99",
    )
    centered: bool | None = key(
        "For rmsprop: divide by the standard deviation instead.", value=None, default="false"
    )
    learning_rate_decay: float | None = key(
        "For adagrad: step n divides the learning rate by 1 + (n - 1) × this.",
        value=None,
        minimum=0,
        default="0",
    )
    initial_accumulator: float | None = key(
        "For adagrad: where the sum of squares begins.", value=None, minimum=0, default="0"
    )
    epsilon: float | None = key(
        "For all but sgd: added to the denominator.",
        value=None,
        above=0,
        below=1,
        default="1e-8; 1e-10 for adagrad",
    )

    def faults(self) -> Iterator[Fault]:
        """What is wrong between the keys."""
        allowed = OPTIMIZER_SETTINGS[self.name]
        yield from _foreign(self, allowed, ("name", "learning_rate"))
        if self.dampening and not self.momentum:
            yield Fault(("dampening",), "only with momentum above 0")
        if self.nesterov and (not self.momentum or self.dampening):
            yield Fault(("nesterov",), "only with momentum above 0 and without dampening")

    @property
    def settings(self) -> dict[str, Setting]:
        """The settings of this optimizer but the learning rate, with the defaults filled in."""
        chosen = ((name, getattr(self, name)) for name in OPTIMIZER_SETTINGS[self.name])
        given = {name: value for name, value in chosen if value is not None}
        return {**OPTIMIZER_SETTINGS[self.name], **given}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that the optimizer treats in their own way."""

    parameters: str = key(
        "Which ones, by a pattern over their names such as `*.bias`; the first group that matches "
        "counts."
    )
    weight_decay: float | None = key(
        "Their weight decay.", value=None, minimum=0, default="the optimizer's"
    )
    learning_rate_scale: float = key("Multiplies the learning rate.", value=1.0, minimum=0)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate changes from round to round."""

    name: str = key("The shape after the warmup.", choices=tuple(SCHEDULE_SETTINGS))
    warmup_rounds: int = key(
        "Rounds in which the learning rate rises to its full value, in equal steps.",
        value=0,
        minimum=0,
    )
    final_scale: float | None = key(
        "For cosine and linear: the part of the learning rate that is left after the last round.",
        value=None,
        minimum=0,
        maximum=1,
        default="0",
    )
    factor: float | None = key(
        "For step and exponential: what the learning rate is multiplied by.",
        value=None,
        above=0,
        maximum=1,
        default="0.1 for step, 0.95 for exponential",
    )
    every_rounds: int | None = key(
        "For step: after so many rounds each.", value=None, minimum=1, default="10"
    )

    def faults(self) -> Iterator[Fault]:
        """What is wrong between the keys."""
        yield from _foreign(self, SCHEDULE_SETTINGS[self.name], ("name", "warmup_rounds"))

    def setting(self, name: str) -> float:
        """One setting of this schedule, or its default."""
        value = getattr(self, name)
        return float(SCHEDULE_SETTINGS[self.name][name] if value is None else value)


@dataclass(frozen=True, kw_only=True)
class Train:
    """What a client does with its data in one round."""

    optimizer: Optimizer = key("The optimizer, as a table.")
    local_epochs: int | None = key(
        "Passes over the client's data in a round.",
        value=None,
        minimum=1,
        default="one of local_epochs, local_steps",
    )
    local_steps: int | None = key(
        "Batches in a round, whatever the client holds.",
        value=None,
        minimum=1,
        default="one of local_epochs, local_steps",
    )
    batch_size: int = key("Examples in a batch; a last smaller one is kept.", minimum=1)
    micro_batch_size: int | None = key(
        "The most examples that are computed at once: a larger batch is cut and its gradients are "
        "added up, which takes less memory.",
        value=None,
        minimum=1,
        default="the whole batch",
    )
    optimizer_state: str = key(
        "Whether momentum and the like begin anew in each round or stay on the device.",
        value="reset",
        choices=("reset", "keep"),
    )
    schedule: Schedule | None = key(
        "How the learning rate changes from round to round.", value=None, default="it does not"
    )
    groups: tuple[Group, ...] = key(
        "Parameters with a weight decay or learning rate of their own.", value=()
    )
    clip_norm: float | None = key(
        "The largest norm of the gradient, over all parameters.",
        value=None,
        above=0,
        default="no clipping",
    )
    clip_value: float | None = key(
        "The largest size of each element of the gradient.",
        value=None,
        above=0,
        default="no clipping",
    )
    proximal: float | None = key(
        "FedProx: how strongly local steps are held to the round's first weights (the µ of "
        "µ/2 ‖w − w₀‖²).",
        value=None,
        above=0,
        default="no such term",
    )

    def faults(self) -> Iterator[Fault]:
        """What is wrong between the keys."""
        if self.local_epochs is None and self.local_steps is None:
            yield Fault((), "local_epochs or local_steps is missing")
        elif self.local_epochs is not None and self.local_steps is not None:
            yield Fault(("local_steps",), "exactly one of local_epochs and local_steps is allowed")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            yield Fault(("micro_batch_size",), f"at most the batch_size ({self.batch_size})")
        if self.clip_norm is not None and self.clip_value is not None:
            yield Fault(("clip_value",), "exactly one of clip_norm and clip_value is allowed")


def _foreign(
    table: Optimizer | Schedule, allowed: Mapping[str, object], common: tuple[str, ...]
) -> Iterator[Fault]:
    """Keys that are set and belong to another kind of optimizer or schedule."""
    for one in fields(table):
        is_set = one.name not in common and getattr(table, one.name) is not None
        if is_set and one.name not in allowed:
            yield Fault((one.name,), f"{table.name} has only {', '.join((*allowed, *common[1:]))}")
