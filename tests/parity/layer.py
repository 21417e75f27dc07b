"""A layer as a case of the zoo: a trained scale, the layer, then a linear map to three values.

The scale lets a gradient pass through the layer; inputs that are numbers of rows go in as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from headwater.batch import TensorSignature
from tests.zoo import Case

VECTOR, SEQUENCE, SIGNAL, IMAGE, VOLUME = (6,), (3, 6), (4, 8), (4, 8, 8), (2, 4, 4, 4)
VALUES = TensorSignature("values", (3,), "float32")


@dataclass(frozen=True)
class Layer:
    """`build` makes the layer; `shape` is one example's, without the batch."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dtype: str = "float32"
    maximum: int | None = None
    settings: dict[str, object] = field(
        default_factory=lambda: {"name": "sgd", "learning_rate": 0.02, "momentum": 0.9}
    )

    def case(self) -> Case:
        """What a plan of this layer needs."""
        signature = TensorSignature("x", self.shape, self.dtype, self.maximum)
        return Case(
            self._model, (signature,), (VALUES,), loss="mse_loss", metrics=(),
            optimizer=self.settings,
        )  # fmt: skip

    def _model(self) -> nn.Module:
        layer = self.build()
        example = torch.zeros(2, *self.shape, dtype=getattr(torch, self.dtype))
        with torch.no_grad():
            width = layer.eval()(example).flatten(1).shape[1]
        before = [Scale(self.shape[-1])] if example.is_floating_point() else []
        return nn.Sequential(*before, layer.train(), nn.Flatten(), nn.Linear(width, 3))


class Scale(nn.Module):
    """A trained factor for each place of the last dimension."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, size))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.scale


class First(nn.Module):
    """The first of several results."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.inner(features)[0]
        return found


class Function(nn.Module):
    """For functions that have no module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: Tensor) -> Tensor:
        return self.function(features)


class Itself(nn.Module):
    """A layer of several inputs, which gets its input that often."""

    def __init__(self, inner: nn.Module, times: int = 2) -> None:
        super().__init__()
        self.inner = inner
        self.times = times

    def forward(self, features: Tensor) -> Tensor:
        found = self.inner(*[features] * self.times)
        return found[0] if isinstance(found, tuple) else found
