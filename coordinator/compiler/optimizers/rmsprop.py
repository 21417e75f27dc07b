"""RMSprop.

Tieleman, Hinton, "Lecture 6.5: rmsprop, divide the gradient by a running average of its recent
magnitude", COURSERA: Neural Networks for Machine Learning, 2012. The centred variant: Graves,
"Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, 2013.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from coordinator.compiler.optimizers.optimizer import (
    Optimizer,
    check_epsilon,
    check_settings,
    moved,
    penalized,
)


@dataclass(frozen=True)
class RmsProp(Optimizer):
    """torch.optim.RMSprop: momentum, the centred variant and L2 weight decay.

    It departs from torch in one place: a centred variance that rounding makes negative counts as
    zero, where torch's becomes NaN.
    """

    name: ClassVar[str] = "rmsprop"
    eager_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.RMSprop
    alpha: float = 0.99
    epsilon: float = 1e-8
    momentum: float = 0.0
    centered: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self, alpha=1.0, momentum=1.0)
        check_epsilon(self, self.epsilon)

    @property
    def slots(self) -> Mapping[str, float]:
        """The running mean of squares; that of the gradient if centred; the velocity."""
        names = ["mean_square", *["mean"] * self.centered, *["momentum"] * bool(self.momentum)]
        return dict.fromkeys(names, 0.0)

    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: Sequence[Tensor],
        shared: Sequence[Tensor],
        learning_rate: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """One step, scaled by the root of the running mean of squares."""
        gradient = penalized(gradient, parameter, self.weight_decay)
        rest = 1 - self.alpha
        variance = torch.addcmul(self.alpha * slots[0], gradient, gradient, value=rest)
        new = [variance]
        if self.centered:
            mean = torch.lerp(slots[1], gradient, rest)
            variance = (variance - mean * mean).clamp(min=0.0)
            new.append(mean)
        direction = gradient / (variance.sqrt() + self.epsilon)
        if self.momentum:
            direction = torch.add(direction, slots[-1], alpha=self.momentum)
            new.append(direction)
        return moved(parameter, direction, learning_rate), new

    def eager_settings(self) -> dict[str, Any]:
        """Named as in torch."""
        return {
            "alpha": self.alpha, "eps": self.epsilon, "momentum": self.momentum,
            "centered": self.centered, "weight_decay": self.weight_decay,
        }  # fmt: skip
