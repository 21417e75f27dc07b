"""Local optimizers as pure functions of tensors, so that one trace serves every runtime.

Each follows its torch.optim namesake, step for step:
    SGD with momentum: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and
        momentum in deep learning", ICML 2013 (torch's form, where the learning rate stands outside
        of the velocity). A velocity that starts at zero equals torch's lazily created one.
    Adam: Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
    AdamW: Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from headwater.errors import CompileError


class Optimizer(Protocol):
    """What the compiler needs of an optimizer; implementations are frozen settings."""

    name: ClassVar[str]

    @property
    def settings(self) -> dict[str, float | bool]:
        """Everything but the learning rate: constants in the graphs."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of state tensors with the shape of their parameter, zero at first."""

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of float32 scalars that all parameters share, zero at first."""

    def advance(self, scalars: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The new scalars, and what `update` shares among all parameters in this step."""

    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: Sequence[Tensor],
        shared: Sequence[Tensor],
        learning_rate: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """The new parameter and its new slots; `shared` comes from `advance`."""

    def eager(
        self, parameters: Iterable[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        """torch's own optimizer with these settings, the yardstick of the parity gate."""


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent with momentum, Nesterov's variant and L2 weight decay."""

    name: ClassVar[str] = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_range("momentum", self.momentum, below=1.0)
        _check_range("weight_decay", self.weight_decay)
        if self.nesterov and not self.momentum:
            raise CompileError("optimizer sgd: nesterov needs a momentum above 0")

    @property
    def settings(self) -> dict[str, float | bool]:
        """Momentum, weight decay and Nesterov."""
        return asdict(self)

    @property
    def slots(self) -> tuple[str, ...]:
        """The velocity, where there is momentum."""
        return ("momentum",) if self.momentum else ()

    @property
    def scalars(self) -> tuple[str, ...]:
        """None."""
        return ()

    def advance(self, scalars: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Nothing is shared."""
        return [], []

    def update(
        self,
        parameter: Tensor,
        gradient: Tensor,
        slots: Sequence[Tensor],
        shared: Sequence[Tensor],
        learning_rate: Tensor,
    ) -> tuple[Tensor, list[Tensor]]:
        """One step of gradient descent."""
        if self.weight_decay:
            gradient = gradient + self.weight_decay * parameter
        if not self.momentum:
            return parameter - learning_rate * gradient, []
        velocity = self.momentum * slots[0] + gradient
        direction = gradient + self.momentum * velocity if self.nesterov else velocity
        return parameter - learning_rate * direction, [velocity]

    def eager(
        self, parameters: Iterable[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        """torch.optim.SGD."""
        return torch.optim.SGD(parameters, lr=learning_rate, **asdict(self))


@dataclass(frozen=True)
class Adam:
    """Adam; the weight decay, if any, is L2 regularization added to the gradient."""

    name: ClassVar[str] = "adam"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_range("beta1", self.beta1, below=1.0)
        _check_range("beta2", self.beta2, below=1.0)
        _check_range("weight_decay", self.weight_decay)
        if not 0 < self.epsilon < 1:
            raise CompileError(f"optimizer {self.name}: epsilon is {self.epsilon}; 0 < epsilon < 1")

    @property
    def settings(self) -> dict[str, float | bool]:
        """Decay rates, epsilon and weight decay."""
        return asdict(self)

    @property
    def slots(self) -> tuple[str, ...]:
        """First and second moments."""
        return ("first_moment", "second_moment")

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
        first = self.beta1 * slots[0] + (1 - self.beta1) * gradient
        second = self.beta2 * slots[1] + (1 - self.beta2) * (gradient * gradient)
        denominator = second.sqrt() / shared[1].sqrt() + self.epsilon
        step = learning_rate / shared[0]
        return parameter - step * (first / denominator), [first, second]

    def eager(
        self, parameters: Iterable[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        """torch.optim.Adam."""
        return torch.optim.Adam(parameters, **self._torch_settings(learning_rate))

    def _decayed(
        self, parameter: Tensor, gradient: Tensor, learning_rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.weight_decay:
            gradient = gradient + self.weight_decay * parameter
        return parameter, gradient

    def _torch_settings(self, learning_rate: float) -> dict[str, Any]:
        return {
            "lr": learning_rate, "betas": (self.beta1, self.beta2), "eps": self.epsilon,
            "weight_decay": self.weight_decay,
        }  # fmt: skip


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay shrinks the parameters directly."""

    name: ClassVar[str] = "adamw"
    weight_decay: float = 0.01

    def eager(
        self, parameters: Iterable[nn.Parameter], learning_rate: float
    ) -> torch.optim.Optimizer:
        """torch.optim.AdamW."""
        return torch.optim.AdamW(parameters, **self._torch_settings(learning_rate))

    def _decayed(
        self, parameter: Tensor, gradient: Tensor, learning_rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        return parameter - (learning_rate * self.weight_decay) * parameter, gradient


OPTIMIZERS: dict[str, type[Sgd] | type[Adam]] = {kind.name: kind for kind in (Sgd, Adam, AdamW)}


def optimizer_from(settings: Mapping[str, Any]) -> tuple[Optimizer, float]:
    """An optimizer and its default learning rate from a job's `[train] optimizer` table.

    Raises:
        CompileError: an unknown name or setting, or a value of the wrong type or out of range.
    """
    kind = OPTIMIZERS.get(str(settings.get("name")))
    if kind is None:
        raise CompileError(
            f"optimizer {settings.get('name')!r} is not known; known: {', '.join(OPTIMIZERS)}"
        )
    chosen = {key: value for key, value in settings.items() if key not in ("name", "learning_rate")}
    defaults = asdict(kind())
    for key, value in chosen.items():
        if key not in defaults:
            allowed = ", ".join(["learning_rate", *defaults])
            raise CompileError(
                f"optimizer {kind.name}: unknown setting {key!r}; allowed: {allowed}"
            )
        wanted: tuple[type, ...] = (bool,) if isinstance(defaults[key], bool) else (int, float)
        if type(value) not in wanted:
            raise CompileError(
                f"optimizer {kind.name}: {key} is {value!r}; "
                f"expected {'true or false' if wanted == (bool,) else 'a number'}"
            )
    rate = settings.get("learning_rate")
    if type(rate) not in (int, float) or not 0 < float(str(rate)) < float("inf"):
        raise CompileError(
            f"optimizer {kind.name}: learning_rate is {rate!r}; expected a number above 0"
        )
    return kind(**chosen), float(str(rate))


def _check_range(name: str, value: float, below: float = float("inf")) -> None:
    if not 0 <= value < below:
        raise CompileError(f"optimizer setting {name} is {value}; expected 0 <= {name} < {below}")
