"""Connectionist temporal classification, unrolled over time: nodes grow with the input's length.

Graves, Fernández, Gomez, Schmidhuber, "Connectionist temporal classification", ICML 2006.
"""

from typing import Any

import torch
from torch import Tensor

from headwater.errors import CompileError

_IMPOSSIBLE = -1e30
"""The logarithm of a probability of zero; unlike minus infinity it makes no NaN."""

_REDUCTIONS = ("none", "mean", "sum")


def ctc_loss(
    log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any, blank: int = 0,
    reduction: int = 1, zero_infinity: bool = False,
) -> Tensor:  # fmt: skip
    """torch.ctc_loss of `log_probs` [time, batch, class] and padded `targets` [batch, labels].

    Where labels do not fit into their time the loss is finite but huge (torch's is infinite), or 0
    with `zero_infinity`.
    """
    if log_probs.dim() != 3 or targets.dim() != 2:
        raise CompileError(
            "ctc_loss is supported with log_probs [time, batch, class] and padded targets "
            "[batch, labels]: fill the labels up instead of joining them"
        )
    time = int(log_probs.shape[0])
    lengths, counts = (_vector(value, targets) for value in (input_lengths, target_lengths))
    states = _with_blanks(targets, blank)
    shape = (time, *states.shape)
    emitted = log_probs.gather(2, states.unsqueeze(0).expand(shape))
    skips = _may_skip(states, blank, log_probs.dtype)
    first = torch.arange(states.shape[1], device=states.device) < 2
    reached = torch.where(first, emitted[0], _IMPOSSIBLE)
    for step in range(1, time):
        paths = torch.stack([reached, _shifted(reached, 1), _shifted(reached, 2) + skips])
        after = paths.logsumexp(0) + emitted[step]
        reached = torch.where((lengths > step).unsqueeze(1), after, reached)
    last = (counts * 2).unsqueeze(1)
    ends = torch.cat([reached.gather(1, last), reached.gather(1, (last - 1).clamp(min=0))], 1)
    ends = torch.cat([ends[:, :1], torch.where(last > 0, ends[:, 1:], _IMPOSSIBLE)], 1)
    losses = -ends.logsumexp(1)
    if zero_infinity:
        losses = torch.where(losses > -_IMPOSSIBLE / 2, torch.zeros_like(losses), losses)
    if _REDUCTIONS[reduction] == "mean":
        return (losses / counts.clamp(min=1).to(losses.dtype)).mean()
    return losses.sum() if _REDUCTIONS[reduction] == "sum" else losses


def _with_blanks(targets: Tensor, blank: int) -> Tensor:
    """[batch, 2 * labels + 1]: a blank before, between and after the labels."""
    blanks = torch.full_like(targets, blank)
    pairs = torch.stack([blanks, targets], 2).flatten(1)
    return torch.cat([pairs, blanks[:, :1]], 1)


def _may_skip(states: Tensor, blank: int, dtype: torch.dtype) -> Tensor:
    """0 where a label may follow the label before without a blank, else impossible."""
    differs = (states[:, 2:] != states[:, :-2]) & (states[:, 2:] != blank)
    allowed = torch.cat([torch.zeros_like(differs[:, :1]).expand(-1, 2), differs], 1)
    return (~allowed).to(dtype) * _IMPOSSIBLE


def _shifted(reached: Tensor, places: int) -> Tensor:
    """The states before, impossible where there are none."""
    nothing = torch.full_like(reached[:, :places], _IMPOSSIBLE)
    return torch.cat([nothing, reached[:, :-places]], 1)


def _vector(lengths: Any, targets: Tensor) -> Tensor:
    if isinstance(lengths, Tensor):
        return lengths.to(torch.int64)
    return torch.tensor(lengths, device=targets.device)
