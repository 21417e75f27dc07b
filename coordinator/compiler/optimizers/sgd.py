"""Stochastic gradient descent with momentum.

Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep
learning", ICML 2013, in torch's form: the learning rate stands outside of the velocity, and the
first step takes the gradient undamped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from coordinator.compiler.optimizers.optimizer import (
    Optimizer,
    check_settings,
    moved,
    penalized,
)
from headwater.errors import CompileError


@dataclass(frozen=True)
class Sgd(Optimizer):
    """torch.optim.SGD: momentum, dampening, Nesterov's variant and L2 weight decay."""

    name: ClassVar[str] = "sgd"
    eager_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.SGD
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_settings(self, momentum=1.0, dampening=1.0)
        if self.dampening and not self.momentum:
            raise CompileError("optimizer sgd: dampening needs a momentum above 0")
        if self.nesterov and (not self.momentum or self.dampening):
            raise CompileError("optimizer sgd: nesterov needs a momentum above 0 and no dampening")

    @property
    def slots(self) -> Mapping[str, float]:
        """The velocity, where there is momentum; one that starts at zero equals torch's."""
        return {"momentum": 0.0} if self.momentum else {}

    @property
    def scalars(self) -> tuple[str, ...]:
        """The number of steps taken, where dampening leaves out the first."""
        return ("step",) if self.dampening else ()

    def advance(self, scalars: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Count the step; shared is the gradient's part in the velocity."""
        if not self.dampening:
            return [], []
        whole = torch.ones_like(scalars[0])
        return [scalars[0] + 1.0], [
            torch.where(scalars[0] == 0, whole, whole * (1 - self.dampening))
        ]

    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: Sequence[Tensor],
        shared: Sequence[Tensor],
        learning_rate: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """One step of gradient descent."""
        gradient = penalized(gradient, parameter, self.weight_decay)
        if not self.momentum:
            return moved(parameter, gradient, learning_rate), []
        added = shared[0] * gradient if shared else gradient
        velocity = torch.add(added, slots[0], alpha=self.momentum)
        direction = velocity
        if self.nesterov:
            direction = torch.add(gradient, velocity, alpha=self.momentum)
        return moved(parameter, direction, learning_rate), [velocity]

    def eager_settings(self) -> dict[str, Any]:
        """Named as in torch."""
        return asdict(self)
