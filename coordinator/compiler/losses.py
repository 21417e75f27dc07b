"""Losses: torch.nn.functional names or the author's function, always a mean over the batch."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from coordinator.compiler.suggestion import suggested
from headwater.errors import CompileError

Loss = str | Callable[..., Tensor]
Settings = Mapping[str, Any]

CLASSIFICATION = ("cross_entropy", "nll_loss", "multi_margin_loss")
"""Losses whose target is a class number; the plan then states how many classes there are."""

LOSS_NAMES = (
    *CLASSIFICATION, "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div", "poisson_nll_loss",
    "soft_margin_loss", "hinge_embedding_loss", "multilabel_soft_margin_loss",
    "multilabel_margin_loss",
)  # fmt: skip

_NOT_SETTINGS = ("input", "target", "size_average", "reduce")
_MEANS = ("mean", "batchmean")


def loss_function(
    loss: Loss, settings: Settings | None = None, *, weighted: bool = False
) -> Callable[..., Tensor]:
    """`(output, *targets) -> scalar`, or with `weighted` `(output, *targets, weight) -> scalar`.

    `settings` are what torch.nn.functional names them. `cross_entropy` and `nll_loss` also take
    outputs [batch, time, class] with targets [batch, time], as language models give them, beside
    torch's own [batch, class, time]. `cross_entropy` takes probabilities for targets where output
    and target have one shape [batch, class]. A weighted loss of a known name is `weighted_mean` of
    the examples' own losses.

    Raises:
        CompileError: not a known name, or a setting that the loss does not have.
    """
    if callable(loss):
        if settings:
            raise CompileError("a loss of your own has no settings: write them in its function")
        return loss
    if loss not in LOSS_NAMES:
        raise CompileError(
            f"loss {loss!r} is not known{suggested(loss, LOSS_NAMES)}; use one of "
            f"{', '.join(LOSS_NAMES)}, or a function (output, target) -> scalar tensor of your own "
            "as 'module:function'"
        )
    function: Callable[..., Tensor] = getattr(F, loss)
    chosen = dict(_checked_settings(loss, function, settings or {}))
    if weighted:
        chosen["reduction"] = "none"
    fitted = _fitted(loss, function, chosen)
    if not weighted:
        return fitted
    return lambda output, target, weight: weighted_mean(fitted(output, target), weight)


def _fitted(
    loss: str, function: Callable[..., Tensor], settings: Settings
) -> Callable[[Any, Tensor], Tensor]:
    """The function with outputs and targets that were held against one another."""

    def fitted(output: Any, target: Tensor) -> Tensor:
        if loss in CLASSIFICATION:
            output, target = classes_second(output, target, loss)
        else:
            target = _same_shape(output, target, whole=loss == "multilabel_margin_loss")
        return function(output, target, **_as_tensors(settings, output))

    return fitted


def _checked_settings(name: str, function: Callable[..., Tensor], settings: Settings) -> Settings:
    allowed = [n for n in inspect.signature(function).parameters if n not in _NOT_SETTINGS]
    for setting, value in settings.items():
        if setting not in allowed:
            raise CompileError(
                f"loss {name} has no setting {setting!r}; it has {', '.join(allowed)}"
            )
        if setting == "reduction" and value not in _MEANS:
            raise CompileError(
                f"loss {name} with reduction {value!r}: a step's loss is the mean over its "
                f"examples; allowed: {', '.join(_MEANS)}"
            )
    return settings


def _as_tensors(settings: Settings, output: Tensor) -> dict[str, Any]:
    """Lists of numbers (weights of classes) as tensors like the output."""
    return {
        name: torch.tensor(value, dtype=output.dtype, device=output.device)
        if isinstance(value, list | tuple)
        else value
        for name, value in settings.items()
    }


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
                "own, F.cross_entropy(output.movedim(-1, 1), target) where they are last"
            )
        if second or last:
            return 1 if second else output.dim() - 1
    raise CompileError(
        f"the loss does not fit: the model's output is {shape_of(output)} and the class targets "
        f"are {shape_of(target)}; expected outputs "
        "[batch, class, ...] or [batch, ..., class] and targets [batch, ...]"
    )


def classes_second(output: Tensor, target: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Output [examples, class(, ...)] and target [examples(, ...)], as torch's losses want them."""
    if target.is_floating_point():
        if loss == "cross_entropy" and output.dim() == 2 and output.shape == target.shape:
            return output, target
        raise CompileError(
            f"{loss} takes class numbers: declare the target's dtype as int64 (cross_entropy also "
            "takes probabilities [batch, class], in the shape of its output)"
        )
    if class_dimension(output, target) == 1:
        return output, target
    return output.flatten(0, -2), target.flatten()


def _same_shape(output: Any, target: Tensor, whole: bool) -> Tensor:
    """The target, after refusing what torch would broadcast with a mere warning; of the output's
    dtype unless it holds whole numbers.
    """
    if not isinstance(output, Tensor) or output.shape != target.shape:
        raise CompileError(
            f"the loss does not fit: the model's output is {shape_of(output)} and the target "
            f"{shape_of(target)}; both need one shape"
        )
    return target if whole or target.is_floating_point() else target.to(output.dtype)


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
            "number, the mean over the batch (.mean())"
        )
    return value
