"""Embeddings: inputs are row numbers."""

from torch import Tensor, nn

from tests.parity.layer import Layer

ROWS, WIDTH = 5, 4


def _rows(build: object, count: int = 3) -> Layer:
    return Layer(build, (count,), "int64", ROWS)  # type: ignore[arg-type]


class Weighted(nn.Module):
    """Each row counts by a trained weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = nn.Embedding(ROWS, 1)
        self.bag = nn.EmbeddingBag(ROWS, WIDTH, mode="sum")

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.bag(rows, per_sample_weights=self.shares(rows).squeeze(-1))
        return found


class Ragged(nn.Module):
    """Bags whose beginnings are data."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(ROWS, WIDTH)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.bag(rows.flatten(), rows[:, 0].cumsum(0))
        return found


LAYERS = {
    "Embedding": _rows(lambda: nn.Embedding(ROWS, WIDTH)),
    "Embedding, padding_idx": _rows(lambda: nn.Embedding(ROWS, WIDTH, padding_idx=1)),
    "Embedding, scale_grad_by_freq": _rows(
        lambda: nn.Embedding(ROWS, WIDTH, scale_grad_by_freq=True)
    ),
    "EmbeddingBag, sum": _rows(lambda: nn.EmbeddingBag(ROWS, WIDTH, mode="sum")),
    "EmbeddingBag, mean": _rows(lambda: nn.EmbeddingBag(ROWS, WIDTH, mode="mean")),
    "EmbeddingBag, max": _rows(lambda: nn.EmbeddingBag(ROWS, WIDTH, mode="max")),
    "EmbeddingBag, padding_idx": _rows(lambda: nn.EmbeddingBag(ROWS, WIDTH, padding_idx=2)),
    "EmbeddingBag, per_sample_weights": _rows(Weighted),
}

REFUSED = {
    "Embedding, sparse": (
        _rows(lambda: nn.Embedding(ROWS, WIDTH, sparse=True)),
        "gradients in a plan are dense: leave out sparse=True",
    ),
    "Embedding, max_norm": (
        _rows(lambda: nn.Embedding(ROWS, WIDTH, max_norm=1.0)),
        "max_norm writes the embedding's weights .* divide the looked-up rows by their norm",
    ),
    "EmbeddingBag, offsets": (
        _rows(Ragged), r"give indices \[batch, size\], filled up with padding_idx",
    ),
}  # fmt: skip
