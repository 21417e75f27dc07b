"""Adam and AdamW.

Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
Reddi, Kale, Kumar, "On the Convergence of Adam and Beyond", ICLR 2018 (`amsgrad`).
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
class Adam(Optimizer):
    """torch.optim.Adam; the weight decay, if any, is L2 regularization added to the gradient."""

    name: ClassVar[str] = "adam"
    eager_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adam
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False

    def __post_init__(self) -> None:
        check_settings(self, beta1=1.0, beta2=1.0)
        check_epsilon(self, self.epsilon)

    @property
    def slots(self) -> Mapping[str, float]:
        """First and second moments, and the largest second moment for AMSGrad."""
        largest = {"largest_second_moment": 0.0} if self.amsgrad else {}
        return {"first_moment": 0.0, "second_moment": 0.0, **largest}

    @property
    def scalars(self) -> tuple[str, ...]:
        """The number of steps taken, for bias correction."""
        return ("step",)

    def advance(self, scalars: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Count the step; shared are the two bias corrections."""
        step = scalars[0] + 1.0
        # in float32, 1 - 0.999 would keep only four digits
        exact = step.double()
        return [step], [(1 - beta**exact).to(step.dtype) for beta in (self.beta1, self.beta2)]

    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: Sequence[Tensor],
        shared: Sequence[Tensor],
        learning_rate: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """One bias-corrected step."""
        parameter, gradient = self._decayed(parameter, gradient, learning_rate)
        first = torch.lerp(slots[0], gradient, 1 - self.beta1)
        second = torch.addcmul(self.beta2 * slots[1], gradient, gradient, value=1 - self.beta2)
        new = [first, second]
        if self.amsgrad:
            new.append(torch.maximum(slots[2], second))
        # both sides of the quotient times the root of the correction: one pass less
        scale = shared[1].sqrt()
        denominator = new[-1].sqrt() + scale * self.epsilon
        return moved(parameter, first / denominator, learning_rate * (scale / shared[0])), new

    def eager_settings(self) -> dict[str, Any]:
        """Named as in torch."""
        return {
            "betas": (self.beta1, self.beta2), "eps": self.epsilon,
            "weight_decay": self.weight_decay, "amsgrad": self.amsgrad,
        }  # fmt: skip

    def _decayed(
        self, parameter: Tensor, gradient: Tensor, learning_rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        return parameter, penalized(gradient, parameter, self.weight_decay)


@dataclass(frozen=True)
class AdamW(Adam):
    """torch.optim.AdamW: Adam whose weight decay shrinks the parameters directly."""

    name: ClassVar[str] = "adamw"
    eager_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.AdamW
    weight_decay: float = 0.01

    def _decayed(
        self, parameter: Tensor, gradient: Tensor, learning_rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not self.weight_decay:
            return parameter, gradient
        return parameter * (1 - learning_rate * self.weight_decay), gradient
