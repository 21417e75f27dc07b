"""Tiny models of every covered kind, with what a plan of each needs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coordinator.compiler.losses import Loss
from headwater.batch import Array, Batch, TensorSignature

IMAGE = TensorSignature("image", (3, 16, 16), "float32")
LABEL = TensorSignature("label", (), "int64", maximum=5)
TOKENS = TensorSignature("tokens", (6,), "int64", maximum=11)
NEXT_TOKENS = TensorSignature("next_tokens", (6,), "int64")


class Mlp(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 5))


class LeNet(nn.Module):
    """The convolutional network of the CIFAR-10 example, for smaller images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 5)
        self.second = nn.Conv2d(6, 16, 3)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(),
            nn.Linear(12, 5),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pool(F.relu(self.first(images)))
        output: Tensor = self.head(self.pool(F.relu(self.second(hidden))))
        return output


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.body(images) + self.shortcut(images))


class ResNet(nn.Sequential):
    """A stem with an overlapping max-pool, one residual block, BatchNorm everywhere."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1), Residual(4, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 5),
        )  # fmt: skip


class Smooth(nn.Sequential):
    """No kinks: GELU and average pooling, so that long runs of two backends stay together."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.AvgPool2d(2),
            nn.Conv2d(6, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(72, 5),
        )  # fmt: skip


class Dropping(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 3), nn.Dropout2d(0.25), nn.GELU(), nn.Flatten(), nn.Dropout(0.5),
            nn.Linear(1176, 5),
        )  # fmt: skip


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        parts = self.queries_keys_values(self.norm(hidden)).split(width, -1)
        shape = (batch, length, self.heads, width // self.heads)
        queries, keys, values = (part.view(shape).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        hidden = hidden + self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        output: Tensor = hidden + self.feed_forward(hidden)
        return output


class Transformer(nn.Module):
    """A causal language model whose output layer shares the embedding's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.positions = nn.Embedding(6, 8)
        self.blocks = nn.Sequential(Attention(8, 2), Attention(8, 2))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.embedding(tokens) + self.positions(places)
        output: Tensor = self.head(self.norm(self.blocks(hidden)))
        return output


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.cells = nn.GRU(4, 10, batch_first=True)
        self.head = nn.Linear(10, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.cells(self.embedding(tokens))
        output: Tensor = self.head(hidden)
        return output


@dataclass(frozen=True)
class Case:
    """What to compile: `settings` are the optimizer's, as in a job file."""

    model: Callable[[], nn.Module]
    inputs: tuple[TensorSignature, ...]
    targets: tuple[TensorSignature, ...]
    loss: Loss = "cross_entropy"
    metrics: tuple[str, ...] = ("accuracy",)
    optimizer: dict[str, object] = field(
        default_factory=lambda: {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
    )

    def build(self, seed: int = 0) -> nn.Module:
        """The model with weights drawn from `seed`."""
        torch.manual_seed(seed)
        return self.model()


_images = partial(Case, inputs=(IMAGE,), targets=(LABEL,))
_text = partial(Case, inputs=(TOKENS,), targets=(NEXT_TOKENS,))

ZOO: dict[str, Case] = {
    "mlp": Case(Mlp, (TensorSignature("features", (20,), "float32"),), (LABEL,)),
    "lenet": _images(LeNet),
    "resnet": _images(ResNet),
    "smooth": _images(Smooth),
    "dropout": _images(Dropping),
    "transformer": _text(
        Transformer, optimizer={"name": "adamw", "learning_rate": 0.002, "weight_decay": 0.01}
    ),
    "gru": _text(Recurrent, optimizer={"name": "adam", "learning_rate": 0.003}),
}


def batch(case: Case, size: int, seed: int) -> Batch:
    """Random examples that fit the case's signatures."""
    draw = np.random.default_rng(seed)

    def values(signature: TensorSignature) -> Array:
        shape = (size, *signature.shape)
        if signature.dtype == "float32":
            return draw.standard_normal(shape, dtype=np.float32)
        return draw.integers(0, signature.maximum or 11, shape).astype(signature.dtype)

    return Batch(tuple(map(values, case.inputs)), tuple(map(values, case.targets)))
