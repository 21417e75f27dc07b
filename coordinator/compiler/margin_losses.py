"""Losses whose kernels torch cannot trace, or that write in place: spelled out, with its arguments.

`reduction` is torch's number: 0 none, 1 mean, 2 sum.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

# ruff: noqa: A002 - arguments have torch's names

_MEAN, _SUM = 1, 2


def _reduced(values: Tensor, reduction: int) -> Tensor:
    if reduction == _MEAN:
        return values.mean()
    return values.sum() if reduction == _SUM else values


def margin_ranking_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = _MEAN
) -> Tensor:
    """torch.margin_ranking_loss."""
    return _reduced((margin - target * (input1 - input2)).clamp(min=0), reduction)


def hinge_embedding_loss(
    input: Tensor, target: Tensor, margin: float = 1.0, reduction: int = _MEAN
) -> Tensor:
    """torch.hinge_embedding_loss; targets are 1 and -1."""
    apart = torch.where(target == 1, 0.0, (margin - input).clamp(min=0))
    return _reduced(torch.where(target == -1, 0.0, input) + apart, reduction)


def cosine_embedding_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0.0, reduction: int = _MEAN
) -> Tensor:
    """torch.cosine_embedding_loss; targets are 1 and -1."""
    lengths = [(x * x).sum(-1) + 1e-12 for x in (input1, input2)]
    cosine = (input1 * input2).sum(-1) / (lengths[0] * lengths[1]).sqrt()
    apart = torch.where(target == -1, (cosine - margin).clamp(min=0), 0.0)
    return _reduced(torch.where(target == 1, 1 - cosine, 0.0) + apart, reduction)


def multi_margin_loss(
    input: Tensor, target: Tensor, p: int = 1, margin: float = 1.0, weight: Tensor | None = None,
    reduction: int = _MEAN,
) -> Tensor:  # fmt: skip
    """torch.nn.functional.multi_margin_loss of [batch, class] and class numbers [batch]."""
    own = target.unsqueeze(1)
    classes = torch.arange(int(input.shape[1]), device=input.device)
    others = (classes != own).to(input.dtype)
    gaps = (margin - input.gather(1, own) + input).clamp(min=0) * others
    losses = gaps * gaps if p == 2 else gaps
    if weight is not None:
        losses = losses * weight[target].unsqueeze(1)
    return _reduced(losses.mean(1), reduction)


def multilabel_margin_loss(input: Tensor, target: Tensor, reduction: int = _MEAN) -> Tensor:
    """torch.nn.functional.multilabel_margin_loss of [batch, class]; labels end at the first -1."""
    listed = ((target < 0).to(torch.int64).cumsum(1) == 0).to(input.dtype)
    places = target.clamp(min=0)
    others = (torch.zeros_like(input).scatter_add(1, places, listed) == 0).to(input.dtype)
    gaps = (1 - input.gather(1, places).unsqueeze(2) + input.unsqueeze(1)).clamp(min=0)
    counted = gaps * listed.unsqueeze(2) * others.unsqueeze(1)
    return _reduced(counted.sum((1, 2)) / int(input.shape[1]), reduction)


def gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Any, full: bool = False, eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """torch.nn.functional.gaussian_nll_loss without its look at the variances' signs.

    Nix, Weigend, "Estimating the mean and variance of the target probability distribution",
    ICNN 1994.
    """
    if not isinstance(var, Tensor):
        var = torch.full_like(input, var)
    if var.dim() == input.dim() - 1:
        var = var.unsqueeze(-1)
    var = var + (var.clamp(min=eps) - var).detach()
    losses = 0.5 * (var.log() + (input - target) ** 2 / var)
    if full:
        losses = losses + 0.5 * math.log(2 * math.pi)
    return _reduced(losses, ("none", "mean", "sum").index(reduction))


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.margin_ranking_loss: margin_ranking_loss,
    torch.hinge_embedding_loss: hinge_embedding_loss,
    torch.cosine_embedding_loss: cosine_embedding_loss,
    torch._C._nn.multi_margin_loss: multi_margin_loss,
    torch._C._nn.multilabel_margin_loss: multilabel_margin_loss,
    F.gaussian_nll_loss: gaussian_nll_loss,
}
