"""Functions that draw random numbers, drawing from the counter-based generator instead of torch's.

Each takes the `Draws` of a step and then torch's own arguments.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from coordinator.compiler.counter_random import keep_mask, normal, uniform
from headwater.errors import CompileError

_SELU_FLOOR = 1.7580993408473766
"""Minus what SELU tends to: Klambauer, Unterthiner, Mayr, Hochreiter, "Self-normalizing neural
networks", NeurIPS 2017."""


class Draws:
    """The random numbers of one step; each call is a site of its own."""

    def __init__(self, seed: Tensor) -> None:
        self._seed = seed
        self.sites = 0

    def keep(self, shape: Sequence[Any], probability: float) -> Tensor:
        """A boolean tensor, false with `probability`."""
        self.sites += 1
        return keep_mask(self._seed, self.sites, shape, probability)

    def uniform(self, shape: Sequence[Any], dtype: torch.dtype | None = None) -> Tensor:
        """Fractions 0 <= u < 1."""
        self.sites += 1
        return uniform(self._seed, self.sites, shape, dtype or torch.get_default_dtype())

    def normal(self, shape: Sequence[Any], dtype: torch.dtype | None = None) -> Tensor:
        """Standard normal numbers."""
        self.sites += 1
        return normal(self._seed, self.sites, shape, dtype or torch.get_default_dtype())

    def dropped(self, values: Tensor, probability: float, by_channel: bool = False) -> Tensor:
        """Dropout: elements or whole channels of zeros, the others larger by 1 / (1 - p)."""
        keep = self._kept(values, probability, by_channel)
        if keep is None:
            return values
        if probability == 1:
            return values * 0.0
        return values * (keep.to(values.dtype) * (1.0 / (1.0 - probability)))

    def dropped_to_floor(
        self, values: Tensor, probability: float, by_channel: bool = False
    ) -> Tensor:
        """Alpha dropout (Klambauer et al., 2017): mean and variance stay as they are."""
        keep = self._kept(values, probability, by_channel)
        if keep is None:
            return values
        if probability == 1:
            return values * 0.0
        keep = keep.to(values.dtype)
        scale: float = ((_SELU_FLOOR**2 * probability + 1) * (1 - probability)) ** -0.5
        floor = (keep - 1) * (_SELU_FLOOR * scale) + _SELU_FLOOR * scale * probability
        return values * (keep * scale) + floor

    def _kept(self, values: Tensor, probability: float, by_channel: bool) -> Tensor | None:
        if not 0 <= probability <= 1:
            raise CompileError(f"dropout with probability {probability}: expected 0 <= p <= 1")
        if probability == 0:
            return None
        shape = tuple(values.shape)
        if by_channel:
            shape = (*shape[:2], *(1,) * (len(shape) - 2))
        return self.keep(shape, probability)


Drawing = Callable[..., Any]
DRAWING: dict[Any, Drawing] = {}
"""By the function of torch that is replaced."""


def _draws_for(*functions: Any) -> Callable[[Drawing], Drawing]:
    def register(drawing: Drawing) -> Drawing:
        DRAWING.update(dict.fromkeys(functions, drawing))
        return drawing

    return register


def _register_dropouts() -> None:
    for name, by_channel, to_floor in (
        ("dropout", False, False),
        ("feature_dropout", True, False),
        ("alpha_dropout", False, True),
        ("feature_alpha_dropout", True, True),
    ):

        def drop(
            draws: Draws, input: Tensor, p: float, train: bool,  # noqa: A002 - torch's name
            by_channel: bool = by_channel, to_floor: bool = to_floor,
        ) -> Tensor:  # fmt: skip
            if not train:
                return input
            method = draws.dropped_to_floor if to_floor else draws.dropped
            return method(input, p, by_channel)

        def drop_in_place(
            draws: Draws, input: Tensor, p: float, train: bool,  # noqa: A002
            drop: Drawing = drop,
        ) -> Tensor:  # fmt: skip
            return input.copy_(drop(draws, input, p, train)) if train else input

        DRAWING[getattr(torch, name)] = drop
        DRAWING[getattr(torch, f"{name}_")] = drop_in_place


_register_dropouts()


@_draws_for(torch.rand)
def _rand(
    draws: Draws, *sizes: Any, size: Any = None, dtype: Any = None, generator: Any = None, **_: Any
) -> Tensor:
    _without(generator)
    return draws.uniform(_listed(sizes, size), dtype)


@_draws_for(torch.randn)
def _randn(
    draws: Draws, *sizes: Any, size: Any = None, dtype: Any = None, generator: Any = None, **_: Any
) -> Tensor:
    _without(generator)
    return draws.normal(_listed(sizes, size), dtype)


@_draws_for(torch.rand_like)
def _rand_like(draws: Draws, input: Tensor, *, dtype: Any = None, **_: Any) -> Tensor:  # noqa: A002
    return draws.uniform(input.shape, dtype or input.dtype)


@_draws_for(torch.randn_like)
def _randn_like(draws: Draws, input: Tensor, *, dtype: Any = None, **_: Any) -> Tensor:  # noqa: A002
    return draws.normal(input.shape, dtype or input.dtype)


@_draws_for(torch.normal)
def _normal(
    draws: Draws, mean: Tensor | float, std: Tensor | float = 1.0, size: Any = None, *,
    generator: Any = None, dtype: Any = None, **_: Any,
) -> Tensor:  # fmt: skip
    _without(generator)
    tensors = [value for value in (mean, std) if isinstance(value, Tensor)]
    if tensors:
        size = torch.broadcast_tensors(*tensors)[0].shape  # type: ignore[no-untyped-call]
        dtype = tensors[0].dtype
    return draws.normal(size, dtype) * std + mean


@_draws_for(Tensor.normal_)
def _normal_in_place(
    draws: Draws, self: Tensor, mean: Any = 0.0, std: Any = 1.0, *, generator: Any = None
) -> Tensor:
    _without(generator)
    return self.copy_(draws.normal(self.shape, self.dtype) * std + mean)


@_draws_for(Tensor.uniform_)
def _uniform_in_place(
    draws: Draws, self: Tensor, *bounds: float, generator: Any = None, **named: float
) -> Tensor:
    _without(generator)
    low, high = [*bounds, *((0.0, 1.0)[len(bounds) :])]
    low, high = named.get("from", low), named.get("to", high)
    return self.copy_(draws.uniform(self.shape, self.dtype) * (high - low) + low)


@_draws_for(Tensor.exponential_)
def _exponential_in_place(
    draws: Draws, self: Tensor, lambd: float = 1.0, *, generator: Any = None
) -> Tensor:
    _without(generator)
    fractions = draws.uniform(self.shape, self.dtype)
    return self.copy_((1.0 - fractions).clamp(max=1.0 - 2.0**-24).log() / -lambd)


@_draws_for(torch.bernoulli, Tensor.bernoulli)
def _bernoulli(
    draws: Draws, input: Tensor, p: float | None = None, *, generator: Any = None  # noqa: A002
) -> Tensor:  # fmt: skip
    _without(generator)
    probability = input if p is None else p
    return (draws.uniform(input.shape, input.dtype) < probability).to(input.dtype)


@_draws_for(Tensor.bernoulli_)
def _bernoulli_in_place(
    draws: Draws, self: Tensor, p: Any = 0.5, *, generator: Any = None
) -> Tensor:
    _without(generator)
    dtype = self.dtype if self.is_floating_point() else torch.float32
    return self.copy_(draws.uniform(self.shape, dtype) < p)


@_draws_for(torch.rrelu)
def _leaky_at_random(
    draws: Draws, input: Tensor, lower: float = 1 / 8, upper: float = 1 / 3,  # noqa: A002
    training: bool = False, *_: Any,
) -> Tensor:  # fmt: skip
    """Xu, Wang, Chen, Li, "Empirical evaluation of rectified activations in convolutional
    network", 2015.
    """
    if not training:
        return F.leaky_relu(input, (lower + upper) / 2)
    slope = draws.uniform(input.shape, input.dtype) * (upper - lower) + lower
    return torch.where(input > 0, input, input * slope)


@_draws_for(torch.rrelu_)
def _leaky_at_random_in_place(draws: Draws, input: Tensor, *settings: Any) -> Tensor:  # noqa: A002
    return input.copy_(_leaky_at_random(draws, input, *settings))


@_draws_for(torch.empty)
def _empty(_: Draws, *sizes: Any, **settings: Any) -> Tensor:
    """Memory as it was found is random too, and may tell secrets: zeros instead."""
    return torch.zeros(*sizes, **settings)


@_draws_for(torch.empty_like)
def _empty_like(_: Draws, input: Tensor, **settings: Any) -> Tensor:  # noqa: A002
    return torch.zeros_like(input, **settings)


@_draws_for(Tensor.new_empty)
def _new_empty(_: Draws, self: Tensor, *sizes: Any, **settings: Any) -> Tensor:
    return self.new_zeros(*sizes, **settings)


_WITHOUT_A_FORM = {
    "randint": "(torch.rand(shape) * high).long()",
    "randint_like": "(torch.rand_like(x) * high).long()",
    "randperm": "torch.rand(count).argsort()",
    "multinomial": "the largest of logits - torch.rand_like(logits).log().neg().log()",
    "poisson": "a normal approximation with torch.randn_like",
    "binomial": "a sum of torch.bernoulli",
}


def _register_refusals() -> None:
    for name, instead in _WITHOUT_A_FORM.items():

        def refuse(*_: Any, name: str = name, instead: str = instead, **__: Any) -> Any:
            raise CompileError(
                f"{name} draws random numbers in a form that a plan does not have: "
                f"write {instead}, which draws alike on every device"
            )

        for owner in (torch, Tensor):
            if hasattr(owner, name):
                DRAWING[getattr(owner, name)] = refuse


_register_refusals()


def _listed(sizes: tuple[Any, ...], size: Any) -> Sequence[Any]:
    if size is not None:
        return tuple(size)
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        return tuple(sizes[0])
    return sizes


def _without(generator: Any) -> None:
    if generator is not None:
        raise CompileError(
            "a random generator of the model's own cannot travel in a plan: leave out generator=, "
            "the numbers then follow from the step's seed"
        )
