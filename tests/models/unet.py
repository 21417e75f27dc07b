"""U-Net, for a mask over an image.

Ronneberger, Fischer, Brox: U-Net: convolutional networks for biomedical image segmentation, MICCAI
2015. With BatchNorm and padded convolutions, as is usual since.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.batch import TensorSignature
from tests.models.whole import Whole
from tests.zoo import Case


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """Images [batch, 3, side, side] to logits [batch, 1, side, side]; sides halve `depth` times."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(map(_pair, [3, *widths], widths))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, 2) for width in widths[-2::-1]
        )
        self.join = nn.ModuleList(_pair(2 * width, width) for width in widths[-2::-1])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.down[0](images)
        skipped = []
        for layer in list(self.down)[1:]:
            skipped.append(hidden)
            hidden = layer(F.max_pool2d(hidden, 2))
        for up, join in zip(self.up, self.join, strict=True):
            hidden = join(torch.cat([skipped.pop(), up(hidden)], 1))
        output: Tensor = self.head(hidden)
        return output


def _case(side: int, width: int, depth: int) -> Case:
    image = TensorSignature("image", (3, side, side), "float32")
    mask = TensorSignature("mask", (1, side, side), "bool")
    return Case(
        partial(UNet, width, depth), (image,), (mask,), "binary_cross_entropy_with_logits", ()
    )


MODELS = {"U-Net": Whole(_case(64, 32, 3), _case(8, 3, 2), batch_size=8)}
