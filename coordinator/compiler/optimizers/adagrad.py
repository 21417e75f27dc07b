"""Adagrad.

Duchi, Hazan, Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
Optimization", Journal of Machine Learning Research 12, 2011.
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
class Adagrad(Optimizer):
    """torch.optim.Adagrad, with torch's decay of the learning rate and L2 weight decay."""

    name: ClassVar[str] = "adagrad"
    eager_class: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adagrad
    learning_rate_decay: float = 0.0
    initial_accumulator: float = 0.0
    epsilon: float = 1e-10
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self, learning_rate_decay=float("inf"), initial_accumulator=float("inf"))
        check_epsilon(self, self.epsilon)

    @property
    def slots(self) -> Mapping[str, float]:
        """The sum of squared gradients."""
        return {"accumulator": self.initial_accumulator}

    @property
    def scalars(self) -> tuple[str, ...]:
        """The number of steps taken, where the learning rate decays."""
        return ("step",) if self.learning_rate_decay else ()

    def advance(self, scalars: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Count the step; shared is what divides the learning rate."""
        if not self.learning_rate_decay:
            return [], []
        return [scalars[0] + 1.0], [1.0 + scalars[0] * self.learning_rate_decay]

    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: Sequence[Tensor],
        shared: Sequence[Tensor],
        learning_rate: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """One step, scaled by the root of the accumulator."""
        gradient = penalized(gradient, parameter, self.weight_decay)
        accumulator = torch.addcmul(slots[0], gradient, gradient)
        rate = learning_rate / shared[0] if shared else learning_rate
        direction = gradient / (accumulator.sqrt() + self.epsilon)
        return moved(parameter, direction, rate), [accumulator]

    def eager_settings(self) -> dict[str, Any]:
        """Named as in torch."""
        return {
            "lr_decay": self.learning_rate_decay, "eps": self.epsilon,
            "initial_accumulator_value": self.initial_accumulator,
            "weight_decay": self.weight_decay,
        }  # fmt: skip
