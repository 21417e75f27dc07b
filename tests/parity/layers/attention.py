"""Attention."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.layer import SEQUENCE, Function, Layer

LENGTH, WIDTH = SEQUENCE


class Attending(nn.Module):
    """MultiheadAttention over a sequence, with what a call of it may bring."""

    def __init__(
        self,
        settings: dict[str, Any],
        call: Callable[[Tensor], dict[str, Any]] = lambda _: {},
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first, **settings)
        self.call = call
        self.batch_first = batch_first

    def forward(self, features: Tensor) -> Tensor:
        if not self.batch_first:
            features = features.transpose(0, 1)
        extra = {"need_weights": False, **self.call(features)}
        key = extra.pop("key", features)
        value = extra.pop("value", key)
        found, weights = self.attention(features, key, value, **extra)
        if weights is not None:
            found = torch.cat([found, weights.flatten(2)], -1)
        return found if self.batch_first else found.transpose(0, 1)


def causal(_: Tensor) -> dict[str, Any]:
    return {"attn_mask": ~torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(), "is_causal": True}


def added(_: Tensor) -> dict[str, Any]:
    return {"attn_mask": nn.Transformer.generate_square_subsequent_mask(LENGTH)}


def padded(features: Tensor) -> dict[str, Any]:
    """The last place does not count where its first number is negative."""
    last = torch.zeros_like(features[..., 0], dtype=torch.bool)
    return {"key_padding_mask": torch.cat([last[:, :-1], features[:, -1:, 0] < 0], 1)}


def other(features: Tensor) -> dict[str, Any]:
    """A shorter sequence of narrower keys and values."""
    return {"key": features[:, :2, :4], "value": features[:, :2, 1:]}


def attended(features: Tensor, **settings: Any) -> Tensor:
    """Four query heads of width 2; the keys and values have `heads` of them."""
    heads = settings.pop("heads", 4)
    wide = torch.cat([features, features.square()], -1)[..., :8]
    parts = wide.unflatten(-1, (4, 2)).transpose(1, 2)
    keys = parts[:, :heads]
    found = F.scaled_dot_product_attention(parts, keys, keys * 2, **settings)
    return found.transpose(1, 2)


class Encoder(nn.Module):
    def __init__(
        self, call: Callable[[Tensor], dict[str, Any]] = lambda _: {}, layers: int = 1,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True, **settings)
        nested = not settings.get("norm_first", False)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=nested)
        self.call = call

    def forward(self, features: Tensor) -> Tensor:
        extra = self.call(features)
        mask = extra.pop("attn_mask", None)
        padding = extra.pop("key_padding_mask", None)
        found: Tensor = self.encoder(features, mask=mask, src_key_padding_mask=padding, **extra)
        return found


class Decoder(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(WIDTH, 2, 8, batch_first=True, **settings)
        self.decoder = nn.TransformerDecoder(layer, 1)

    def forward(self, features: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        found: Tensor = self.decoder(features, features.flip(1), tgt_mask=mask, tgt_is_causal=True)
        return found


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(WIDTH, 2, 1, 1, 8, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        found: Tensor = self.transformer(features, features.flip(1), tgt_mask=mask)
        return found


def _attending(*arguments: Any, **settings: Any) -> Layer:
    return Layer(lambda: Attending(*arguments, **settings), SEQUENCE)


def _function(**settings: Any) -> Layer:
    return Layer(lambda: Function(partial(attended, **settings)), SEQUENCE)


SOME = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
FINITE = torch.tensor([[0.5, -1.0, 0.0], [2.0, 0.1, -0.3], [0.0, 0.0, 1.0]])

LAYERS = {
    "MultiheadAttention": _attending({}),
    "MultiheadAttention, batch second": _attending({}, batch_first=False),
    "MultiheadAttention, causal": _attending({}, causal),
    "MultiheadAttention, added mask": _attending({}, added),
    "MultiheadAttention, key padding": _attending({}, padded),
    "MultiheadAttention, weights": _attending({"dropout": 0.2}, lambda _: {"need_weights": True}),
    "MultiheadAttention, cross": _attending({"kdim": 4, "vdim": 5}, other),
    "MultiheadAttention, dropout, no bias": _attending({"dropout": 0.2, "bias": False}),
    "MultiheadAttention, bias_kv, zero_attn": _attending(
        {"add_bias_kv": True, "add_zero_attn": True}
    ),
    "TransformerEncoderLayer": Layer(
        lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), SEQUENCE
    ),
    "TransformerEncoder, key padding": Layer(lambda: Encoder(padded), SEQUENCE),
    "TransformerEncoder, norm first, GELU, causal": Layer(
        lambda: Encoder(added, 2, norm_first=True, activation="gelu", dropout=0.0), SEQUENCE
    ),
    "TransformerDecoder": Layer(Decoder, SEQUENCE),
    "Transformer": Layer(Translator, SEQUENCE),
    "scaled_dot_product_attention": _function(),
    "scaled_dot_product_attention, causal, scaled": _function(is_causal=True, scale=0.3),
    "scaled_dot_product_attention, boolean mask": _function(attn_mask=SOME),
    "scaled_dot_product_attention, added mask": _function(attn_mask=FINITE),
    "scaled_dot_product_attention, grouped queries": _function(heads=2, enable_gqa=True),
    "scaled_dot_product_attention, dropout": _function(dropout_p=0.3),
}

REFUSED: dict[str, tuple[Layer, str]] = {}
