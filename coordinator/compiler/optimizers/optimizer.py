"""What the compiler asks of a local optimizer."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from headwater.errors import CompileError


class Optimizer(ABC):
    """One update rule; implementations are frozen dataclasses of their settings.

    A rule works element by element, so that it gives the same on tensors one by one and on all of
    them laid out in one vector.
    """

    name: ClassVar[str]
    eager_class: ClassVar[type[torch.optim.Optimizer]]
    """torch's own optimizer of this name, the yardstick of the parity gate."""
    weight_decay: float

    @property
    def settings(self) -> dict[str, float | bool]:
        """Everything but the learning rate: constants in the graphs."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @property
    def slots(self) -> Mapping[str, float]:
        """State tensors with the shape of their parameter: names with their initial value."""
        return {}

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of float32 scalars that all parameters share, zero at first."""
        return ()

    def advance(self, scalars: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The new scalars, and what `update` shares among all parameters in this step."""
        return [], []

    @abstractmethod
    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: Sequence[Tensor],
        shared: Sequence[Tensor],
        learning_rate: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """The new parameter and its new slots; `shared` comes from `advance`."""

    @abstractmethod
    def eager_settings(self) -> dict[str, Any]:
        """These settings as keyword arguments of `eager_class`."""

    def eager(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], learning_rate: float
    ) -> torch.optim.Optimizer:
        """torch's optimizer with these settings, over parameters or torch's parameter groups."""
        arguments = {"lr": learning_rate, **self.eager_settings()}
        return self.eager_class(parameters, **arguments)


def check_settings(optimizer: Optimizer, **below: float) -> None:
    """Refuse a setting that is not `0 <= setting < below`, weight decay among them.

    Raises:
        CompileError: with the setting and what is allowed.
    """
    for name, limit in {"weight_decay": float("inf"), **below}.items():
        value = getattr(optimizer, name)
        if not 0 <= value < limit:
            raise CompileError(
                f"optimizer {optimizer.name}: {name} is {value}; expected 0 <= {name}"
                + ("" if limit == float("inf") else f" < {limit:g}")
            )


def check_epsilon(optimizer: Optimizer, epsilon: float) -> None:
    """Refuse an epsilon that would let 0/0 pass, or drown the gradient.

    Raises:
        CompileError: it is not between 0 and 1.
    """
    if not 0 < epsilon < 1:
        raise CompileError(f"optimizer {optimizer.name}: epsilon is {epsilon}; 0 < epsilon < 1")


def penalized(gradient: Tensor, parameter: Tensor, weight_decay: float) -> Tensor:
    """The gradient with that of the L2 penalty, `weight_decay * parameter`."""
    return torch.add(gradient, parameter, alpha=weight_decay) if weight_decay else gradient


def moved(parameter: Tensor, direction: Tensor, learning_rate: Tensor) -> Tensor:
    """The parameter one step against the direction: one pass over memory in torch."""
    return torch.addcmul(parameter, direction, -learning_rate)
