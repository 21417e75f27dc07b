"""LeNet-5.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, Proceedings
of the IEEE, 1998. With ReLU and max-pooling for colour images, as federated benchmarks have it.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from headwater.batch import TensorSignature
from tests.models.whole import Whole
from tests.zoo import Case


class LeNet(nn.Module):
    """Images [batch, 3, side, side] to [batch, classes]; `channels` of the two convolutions."""

    def __init__(
        self, side: int, channels: tuple[int, int], widths: tuple[int, int], classes: int
    ) -> None:
        super().__init__()
        first, second = channels
        self.first = nn.Conv2d(3, first, 5)
        self.second = nn.Conv2d(first, second, 5)
        left = ((side - 4) // 2 - 4) // 2
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(second * left * left, widths[0]), nn.ReLU(),
            nn.Linear(*widths), nn.ReLU(), nn.Linear(widths[1], classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.max_pool2d(F.relu(self.first(images)), 2)
        hidden = F.max_pool2d(F.relu(self.second(hidden)), 2)
        output: Tensor = self.head(hidden)
        return output


def _case(side: int, channels: tuple[int, int], widths: tuple[int, int], classes: int) -> Case:
    image = TensorSignature("image", (3, side, side), "float32")
    label = TensorSignature("label", (), "int64", classes)
    return Case(partial(LeNet, side, channels, widths, classes), (image,), (label,))


MODELS = {"LeNet": Whole(_case(32, (6, 16), (120, 84), 10), _case(16, (3, 5), (8, 6), 4))}
