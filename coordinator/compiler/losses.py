"""Losses: torch.nn.functional names or the author's function, always a mean over the batch."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from headwater.errors import CompileError

Loss = str | Callable[..., Tensor]

CLASSIFICATION = ("cross_entropy", "nll_loss")
"""Losses whose target is a class number; the plan then states how many classes there are."""

LOSS_NAMES = (
    *CLASSIFICATION, "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div", "poisson_nll_loss",
    "soft_margin_loss",
)  # fmt: skip


def loss_function(loss: Loss, *, weighted: bool = False) -> Callable[..., Tensor]:
    """`(output, *targets) -> scalar`, or with `weighted` `(output, *targets, weight) -> scalar`.

    `cross_entropy` and `nll_loss` also take outputs [batch, time, class] with targets
    [batch, time], as language models give them, beside torch's own [batch, class, time]. A weighted
    loss of a known name is `weighted_mean` of the examples' own losses.

    Raises:
        CompileError: not a known name.
    """
    if callable(loss):
        return loss
    if loss not in LOSS_NAMES:
        raise CompileError(
            f"loss {loss!r} is not known; use one of {', '.join(LOSS_NAMES)}, or a function "
            "(output, target) -> scalar tensor of your own as 'module:function'"
        )
    function: Callable[..., Tensor] = getattr(F, loss)
    if weighted:
        function = partial(function, reduction="none")
    fitted = _fitted(loss, function)
    if not weighted:
        return fitted
    return lambda output, target, weight: weighted_mean(fitted(output, target), weight)


def _fitted(loss: str, function: Callable[..., Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """The function with outputs and targets that were held against one another."""
    if loss in CLASSIFICATION:
        return lambda output, target: function(*classes_second(output, target))
    if "reduction" in inspect.signature(function).parameters:
        return lambda output, target: function(output, _same_shape(output, target))
    return function


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """`sum(w * v) / sum(w)`, where `v` is each example's mean over its own values.

    `weight` is [batch]; the first dimension of `values` is the batch, or the batch and the places
    of a sequence in one.
    """
    examples = values.reshape(weight.shape[0], -1).mean(1)
    return (weight * examples).sum() / weight.sum()


def class_dimension(output: Any, target: Tensor) -> int:
    """Where the classes lie in `output`: 1 as torch has it, or last for sequences.

    Raises:
        CompileError: the shapes fit neither form, or both.
    """
    if isinstance(output, Tensor) and output.dim() == target.dim() + 1:
        second = output.shape[2:] == target.shape[1:]
        last = output.shape[1:-1] == target.shape[1:]
        if output.dim() > 2 and second and last:
            raise CompileError(
                f"an output {shape_of(output)} with targets {shape_of(target)} can hold the "
                "classes in the second or the last dimension: write the loss as a function of your "
                "own"
            )
        if second or last:
            return 1 if second else output.dim() - 1
    raise CompileError(
        f"the loss does not fit: the model's output is {shape_of(output)} and the class targets "
        f"are {shape_of(target)}; expected outputs "
        "[batch, class, ...] or [batch, ..., class] and targets [batch, ...]"
    )


def classes_second(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Output [examples, class(, ...)] and target [examples(, ...)], as torch's losses want them."""
    if target.is_floating_point():
        raise CompileError(
            "a classification loss takes class numbers: declare the target's dtype as int64"
        )
    if class_dimension(output, target) == 1:
        return output, target
    return output.flatten(0, -2), target.flatten()


def _same_shape(output: Any, target: Tensor) -> Tensor:
    """The target, after refusing what torch would broadcast with a mere warning."""
    if not isinstance(output, Tensor) or output.shape != target.shape:
        raise CompileError(
            f"the loss does not fit: the model's output is {shape_of(output)} and the target "
            f"{shape_of(target)}; both need one shape"
        )
    return target if target.is_floating_point() else target.to(output.dtype)


def shape_of(value: Any) -> str:
    """A shape for messages, such as [batch, 10]; the name of the type for anything else."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"[{', '.join(str(s) if isinstance(s, int) else 'batch' for s in value.shape)}]"


def checked_loss(value: Any) -> Tensor:
    """The loss, after refusing anything but one floating number."""
    if not isinstance(value, torch.Tensor):
        raise CompileError(f"the loss returned {type(value).__name__}; expected a scalar tensor")
    if value.dim() != 0 or not value.is_floating_point():
        raise CompileError(
            f"the loss returned {shape_of(value)} of {value.dtype}; expected one floating "
            "number, the mean over the batch"
        )
    return value
