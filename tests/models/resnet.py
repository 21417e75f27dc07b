"""ResNet-18.

He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016. The standard stem is a
7×7 convolution and a max-pool, for images of 224 pixels; CIFAR's is one 3×3 convolution.
"""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from headwater.batch import TensorSignature
from tests.models.whole import SMALL_STEPS, Whole
from tests.zoo import Case


def normalized(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias, then BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is the identity where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = normalized(inputs, outputs, 3, stride)
        self.second = normalized(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else normalized(inputs, outputs, 1, stride)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.first(images), inplace=True)
        return F.relu(self.second(hidden) + self.shortcut(images))


class ResNet(nn.Sequential):
    """A stem, stages of basic blocks that halve the sides from the second on, and a linear head."""

    def __init__(
        self, standard_stem: bool, widths: Sequence[int], blocks: int, classes: int
    ) -> None:
        kernel, stride = (7, 2) if standard_stem else (3, 1)
        layers: list[nn.Module] = [normalized(3, widths[0], kernel, stride), nn.ReLU(inplace=True)]
        if standard_stem:
            layers.append(nn.MaxPool2d(3, 2, 1))
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(BasicBlock(inputs, width, 2 if stage and not block else 1))
                inputs = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def _case(side: int, standard_stem: bool, widths: Sequence[int], blocks: int, classes: int) -> Case:
    image = TensorSignature("image", (3, side, side), "float32")
    label = TensorSignature("label", (), "int64", classes)
    model = partial(ResNet, standard_stem, widths, blocks, classes)
    return Case(model, (image,), (label,), optimizer=SMALL_STEPS)


_WIDTHS = (64, 128, 256, 512)

MODELS = {
    "ResNet-18, CIFAR stem": Whole(
        _case(32, False, _WIDTHS, 2, 10), _case(12, False, (4, 6), 2, 4)
    ),
    "ResNet-18, standard stem": Whole(
        _case(224, True, _WIDTHS, 2, 10), _case(32, True, (4, 6), 1, 4), batch_size=8
    ),
}
