"""Scaled dot-product attention in matrix products and a softmax."""

import torch
from torch import Tensor

from coordinator.compiler.randomness import Draws

MASKED_SCORE = -1e30
"""Added to attention scores that must not count; unlike minus infinity it makes no NaN."""


def attention(
    draws: Draws,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Vaswani et al., "Attention is all you need", NeurIPS 2017, with torch's arguments.

    Grouped queries: Ainslie et al., "GQA", EMNLP 2023. A query whose keys are all masked gives
    zeros, as in torch.
    """
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (part.repeat_interleave(repeats, -3) for part in (key, value))
    scaled = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scaled @ key.transpose(-2, -1)
    if is_causal:
        shape = (query.shape[-2], key.shape[-2])
        earlier = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
        scores = scores + _scores_where_not(earlier, scores)
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        added = _scores_where_not(attn_mask, scores) if masked else attn_mask.clamp(MASKED_SCORE)
        scores = scores + added
    found = draws.dropped(torch.softmax(scores, -1), dropout_p) @ value
    if attn_mask is None:
        return found
    seen = attn_mask if attn_mask.dtype == torch.bool else attn_mask > MASKED_SCORE
    return found * seen.any(-1, keepdim=True).to(found.dtype)


def _scores_where_not(allowed: Tensor, scores: Tensor) -> Tensor:
    """0 where attention is allowed and a large negative score elsewhere; added, not selected."""
    return (~allowed).to(scores.dtype) * MASKED_SCORE
