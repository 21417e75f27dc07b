"""Transformers: an image classifier, a causal and a masked language model.

Vaswani et al.: Attention is all you need, NIPS 2017. Dosovitskiy et al.: An image is worth 16×16
words, ICLR 2021, in the tiny width of Touvron et al.: Training data-efficient image transformers,
ICML 2021. Radford et al.: Language models are unsupervised multitask learners, 2019. Devlin, Chang,
Lee, Toutanova: BERT, NAACL 2019, in the tiny size of Turc, Chang, Lee, Toutanova: Well-read
students learn better, 2019.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.batch import TensorSignature
from tests.models.whole import Whole
from tests.zoo import Case

PADDING = 0
"""The token that fills a text up, and the target of a token that is not to be guessed."""


class Attention(nn.Module):
    """Self-attention of several heads; a key counts where `attends` [batch, length] is true."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, hidden: Tensor, attends: Tensor | None = None) -> Tensor:
        batch, length, width = hidden.shape
        parts = self.queries_keys_values(hidden).chunk(3, -1)
        shape = (batch, length, self.heads, width // self.heads)
        queries, keys, values = (part.view(shape).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, None if attends is None else attends[:, None, None, :],
            self.dropout if self.training else 0.0, self.causal,
        )  # fmt: skip
        projected: Tensor = self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return projected


class Block(nn.Module):
    """Attention and a feed-forward network, each added to its input.

    They normalize first (GPT, ViT), or `normalizes_after` (BERT).
    """

    def __init__(
        self, width: int, heads: int, *, dropout: float, causal: bool, normalizes_after: bool
    ) -> None:
        super().__init__()
        self.normalizes_after = normalizes_after
        self.attention = Attention(width, heads, dropout, causal)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, attends: Tensor | None = None) -> Tensor:
        if self.normalizes_after:
            hidden = self.first(hidden + self.drop(self.attention(hidden, attends)))
            after: Tensor = self.second(hidden + self.drop(self.feed_forward(hidden)))
            return after
        hidden = hidden + self.drop(self.attention(self.first(hidden), attends))
        output: Tensor = hidden + self.drop(self.feed_forward(self.second(hidden)))
        return output


class ViT(nn.Module):
    """Images [batch, 3, side, side], cut into patches, to [batch, classes]."""

    def __init__(
        self, side: int, patch: int, width: int, heads: int, depth: int, classes: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 1 + (side // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(
            *(
                Block(width, heads, dropout=0.0, causal=False, normalizes_after=False)
                for _ in range(depth)
            )
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(images.shape[0], -1, -1), tokens], 1) + self.places
        output: Tensor = self.head(self.blocks(tokens)[:, 0])
        return output


class Gpt(nn.Module):
    """Tokens [batch, length] to [batch, length, vocabulary]; the last layer is the embedding's."""

    def __init__(
        self, vocabulary: int, length: int, width: int, heads: int, depth: int, dropout: float
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(
                Block(width, heads, dropout=dropout, causal=True, normalizes_after=False)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.drop(self.tokens(tokens) + self.places(places))
        output: Tensor = self.head(self.norm(self.blocks(hidden)))
        return output


class Bert(nn.Module):
    """Tokens [batch, length], padded with zeros, to [batch, length, vocabulary]."""

    def __init__(
        self, vocabulary: int, length: int, width: int, heads: int, depth: int, dropout: float
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(width, heads, dropout=dropout, causal=False, normalizes_after=True)
            for _ in range(depth)
        )
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, vocabulary)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        attends = tokens != PADDING
        hidden = self.norm(self.tokens(tokens) + self.places)
        for block in self.blocks:
            hidden = block(hidden, attends)
        output: Tensor = self.head(hidden)
        return output


def masked_cross_entropy(output: Tensor, targets: Tensor) -> Tensor:
    """The mean over the tokens that are to be guessed."""
    return F.cross_entropy(output.flatten(0, 1), targets.flatten(), ignore_index=PADDING)


_ADAMW: dict[str, object] = {"name": "adamw", "learning_rate": 0.001, "weight_decay": 0.01}


def _vit(side: int, *settings: int) -> Case:
    image = TensorSignature("image", (3, side, side), "float32")
    label = TensorSignature("label", (), "int64", settings[-1])
    return Case(partial(ViT, side, *settings), (image,), (label,), optimizer=_ADAMW)


def _text(vocabulary: int, length: int) -> tuple[TensorSignature, TensorSignature]:
    return (
        TensorSignature("tokens", (length,), "int64", vocabulary),
        TensorSignature("next_tokens", (length,), "int64", vocabulary),
    )


def _gpt(vocabulary: int, length: int, width: int, heads: int, depth: int) -> Case:
    model = partial(Gpt, vocabulary, length, width, heads, depth, 0.1)
    tokens, targets = _text(vocabulary, length)
    return Case(model, (tokens,), (targets,), optimizer=_ADAMW)


def _bert(vocabulary: int, length: int, width: int, heads: int, depth: int) -> Case:
    model = partial(Bert, vocabulary, length, width, heads, depth, 0.1)
    tokens, targets = _text(vocabulary, length)
    return Case(model, (tokens,), (targets,), masked_cross_entropy, (), _ADAMW)


MODELS = {
    "ViT-tiny": Whole(_vit(32, 4, 192, 3, 12, 10), _vit(8, 4, 12, 2, 2, 4)),
    "GPT, 10M parameters": Whole(_gpt(65, 128, 384, 6, 6), _gpt(11, 6, 12, 2, 2), batch_size=8),
    "BERT-tiny": Whole(_bert(2000, 64, 128, 2, 2), _bert(11, 6, 12, 2, 2)),
}
