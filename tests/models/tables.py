"""Models of several inputs: a two-tower recommender and a network on tabular data.

Yi et al.: Sampling-bias-corrected neural modeling for large corpus item recommendations, RecSys
2019, for the towers and the loss within the batch. Guo, Berkhahn: Entity embeddings of categorical
variables, 2016; the columns are those of Kohavi: Scaling up the accuracy of naive-Bayes
classifiers, KDD 1996 (adult census).
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.batch import TensorSignature
from tests.models.whole import Whole
from tests.zoo import Case


def _tower(rows: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Embedding(rows, width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
    )


class TwoTower(nn.Module):
    """User and item numbers [batch] to [batch, 2, width]: both of unit length."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.users, self.items = _tower(users, width), _tower(items, width)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return F.normalize(torch.stack([self.users(users), self.items(items)], 1), dim=-1)


def in_batch_softmax(output: Tensor, ratings: Tensor) -> Tensor:
    """Each user's item against all items of the batch, weighted by its rating."""
    scores = output[:, 0] @ output[:, 1].T / 0.1
    own = (output[:, 0] * output[:, 1]).sum(1) / 0.1
    return (ratings * (scores.logsumexp(1) - own)).mean()


class Tabular(nn.Module):
    """Numbers [batch, columns] and one category [batch] for each table, to logits [batch]."""

    def __init__(self, numbers: int, categories: Sequence[int], width: int) -> None:
        super().__init__()
        sizes = [min(50, (count + 1) // 2) for count in categories]
        self.tables = nn.ModuleList(map(nn.Embedding, categories, sizes))
        self.norm = nn.BatchNorm1d(numbers)
        self.layers = nn.Sequential(
            nn.Linear(numbers + sum(sizes), width), nn.ReLU(), nn.BatchNorm1d(width),
            nn.Dropout(0.1), nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, 1),
        )  # fmt: skip

    def forward(self, numbers: Tensor, *categories: Tensor) -> Tensor:
        columns = [table(one) for table, one in zip(self.tables, categories, strict=True)]
        output: Tensor = self.layers(torch.cat([self.norm(numbers), *columns], 1))
        return output.squeeze(1)


def _two_tower(users: int, items: int, width: int) -> Case:
    return Case(
        partial(TwoTower, users, items, width),
        (
            TensorSignature("user", (), "int64", users),
            TensorSignature("item", (), "int64", items),
        ),
        (TensorSignature("rating", (), "float32"),),
        in_batch_softmax,
        (),
        {"name": "adam", "learning_rate": 0.001},
    )


def _tabular(numbers: int, categories: dict[str, int], width: int) -> Case:
    columns = [TensorSignature(name, (), "int64", count) for name, count in categories.items()]
    return Case(
        partial(Tabular, numbers, list(categories.values()), width),
        (TensorSignature("numbers", (numbers,), "float32"), *columns),
        (TensorSignature("earns_more", (), "bool"),),
        "binary_cross_entropy_with_logits",
        (),
    )


_CENSUS = {
    "work": 9, "education": 16, "marriage": 7, "occupation": 15, "relation": 6, "race": 5,
    "sex": 2, "country": 42,
}  # fmt: skip

MODELS = {
    "two-tower recommender": Whole(_two_tower(6040, 3706, 32), _two_tower(9, 7, 4)),
    "MLP on tabular data": Whole(_tabular(6, _CENSUS, 200), _tabular(3, {"a": 5, "b": 4}, 8)),
}
