"""All losses by name, each behind a small network."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coordinator.compiler.losses import loss_function
from headwater.batch import TensorSignature
from tests.parity.layer import VECTOR
from tests.zoo import Case

CLASS = TensorSignature("label", (), "int64", 3)
NUMBERS = TensorSignature("y", (3,), "float32")
YES_OR_NO = TensorSignature("y", (3,), "bool")
CLASSES = TensorSignature("y", (3,), "int64", 3)
CLASS_SEQUENCE = TensorSignature("y", (2,), "int64", 3)
SIGN = TensorSignature("y", (), "bool")


@dataclass(frozen=True)
class Tried:
    """A loss of the output [batch, 3] of a linear map and `after`, against `target`."""

    loss: str | Callable[..., Tensor]
    target: TensorSignature
    settings: dict[str, Any] = field(default_factory=dict)
    after: Callable[[], nn.Module] = nn.Identity

    def case(self) -> Case:
        """What a plan needs; the settings are part of the loss."""
        loss: Any = loss_function(self.loss, self.settings) if self.settings else self.loss
        return Case(
            lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3), self.after()),
            (TensorSignature("x", VECTOR, "float32"),), (self.target,), loss=loss, metrics=(),
        )  # fmt: skip


def _logarithms() -> nn.Module:
    return nn.LogSoftmax(1)


class Sequence(nn.Module):
    """[batch, time, class], as language models give it."""

    def forward(self, output: Tensor) -> Tensor:
        return torch.stack([output, output.flip(1)], 1)


def pair(output: Tensor) -> tuple[Tensor, Tensor]:
    return output, output.square().flip(1)


def signs(target: Tensor) -> Tensor:
    return target.to(torch.float32) * 2 - 1


def cosine(output: Tensor, target: Tensor) -> Tensor:
    return F.cosine_embedding_loss(*pair(output), signs(target), margin=0.1)


def ranking(output: Tensor, target: Tensor) -> Tensor:
    return F.margin_ranking_loss(output[:, 0], output[:, 1], signs(target), margin=0.2)


def gaussian(output: Tensor, target: Tensor) -> Tensor:
    return F.gaussian_nll_loss(output, target, F.softplus(output.flip(1)) + 0.1, full=True)


def triplet(output: Tensor, target: Tensor) -> Tensor:
    return F.triplet_margin_loss(output, target, target.flip(1), margin=2.0)


def triplet_with_distance(output: Tensor, target: Tensor) -> Tensor:
    return F.triplet_margin_with_distance_loss(
        output, target, target.flip(1), margin=2.0,
        distance_function=lambda a, b: 1 - F.cosine_similarity(a, b),
    )  # fmt: skip


def hardest(output: Tensor, target: Tensor) -> Tensor:
    """Online hard examples: the largest errors only."""
    return (output - target).square().mean(1).topk(3).values.mean()


def contrastive(output: Tensor, target: Tensor) -> Tensor:
    """The other examples of the batch are the negatives: van den Oord et al., 2018."""
    return F.cross_entropy(output @ target.t(), torch.arange(output.shape[0]))


def temporal(output: Tensor, target: Tensor) -> Tensor:
    """CTC over six time steps that the output's products make; labels are 1 or 2."""
    steps = torch.stack([output * (step + 1) for step in range(6)]).log_softmax(-1)
    batch = output.shape[0]
    return F.ctc_loss(
        steps, target.clamp(1, 2)[:, :2],
        torch.full((batch,), 6), torch.full((batch,), 1) + (target[:, 2] > 0),
    )  # fmt: skip


LOSSES = {
    "cross_entropy": Tried("cross_entropy", CLASS),
    "cross_entropy, weight": Tried("cross_entropy", CLASS, {"weight": [1.0, 2.0, 0.5]}),
    "cross_entropy, label_smoothing": Tried("cross_entropy", CLASS, {"label_smoothing": 0.1}),
    "cross_entropy, ignore_index": Tried("cross_entropy", CLASS, {"ignore_index": 1}),
    "cross_entropy, sequence": Tried("cross_entropy", CLASS_SEQUENCE, after=Sequence),
    "cross_entropy, probabilities": Tried("cross_entropy", NUMBERS),
    "nll_loss": Tried("nll_loss", CLASS, after=_logarithms),
    "nll_loss, weight": Tried("nll_loss", CLASS, {"weight": [1.0, 2.0, 0.5]}, _logarithms),
    "multi_margin_loss": Tried("multi_margin_loss", CLASS),
    "mse_loss": Tried("mse_loss", NUMBERS),
    "l1_loss": Tried("l1_loss", NUMBERS),
    "smooth_l1_loss": Tried("smooth_l1_loss", NUMBERS, {"beta": 0.5}),
    "huber_loss": Tried("huber_loss", NUMBERS, {"delta": 0.5}),
    "binary_cross_entropy": Tried("binary_cross_entropy", YES_OR_NO, after=nn.Sigmoid),
    "binary_cross_entropy_with_logits": Tried(
        "binary_cross_entropy_with_logits", YES_OR_NO, {"pos_weight": [1.0, 2.0, 3.0]}
    ),
    "kl_div": Tried("kl_div", YES_OR_NO, after=_logarithms),
    "kl_div, log_target, batchmean": Tried(
        "kl_div", NUMBERS, {"log_target": True, "reduction": "batchmean"}, _logarithms
    ),
    "poisson_nll_loss": Tried("poisson_nll_loss", YES_OR_NO),
    "soft_margin_loss": Tried("soft_margin_loss", YES_OR_NO),
    "hinge_embedding_loss": Tried(
        lambda output, target: F.hinge_embedding_loss(output, signs(target)), YES_OR_NO
    ),
    "multilabel_margin_loss": Tried("multilabel_margin_loss", CLASSES),
    "multilabel_soft_margin_loss": Tried("multilabel_soft_margin_loss", YES_OR_NO),
    "cosine_embedding_loss": Tried(cosine, SIGN),
    "margin_ranking_loss": Tried(ranking, SIGN),
    "gaussian_nll_loss": Tried(gaussian, NUMBERS),
    "triplet_margin_loss": Tried(triplet, NUMBERS),
    "triplet_margin_with_distance_loss": Tried(triplet_with_distance, NUMBERS),
    "ctc_loss": Tried(temporal, CLASSES),
    "topk in a loss of one's own": Tried(hardest, NUMBERS),
    "negatives from the batch": Tried(contrastive, NUMBERS),
}
