"""Networks of inverted residual blocks: MobileNetV2, MobileNetV3-small and EfficientNet-B0.

Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: inverted residuals and linear bottlenecks, CVPR
2018. Howard et al.: Searching for MobileNetV3, ICCV 2019. Tan, Le: EfficientNet: rethinking model
scaling for convolutional neural networks, ICML 2019; here without its stochastic depth.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from headwater.batch import TensorSignature
from tests.models.whole import SMALL_STEPS, Whole
from tests.zoo import Case

Activation = Callable[[], nn.Module]


@dataclass(frozen=True)
class Block:
    """A row of the papers' tables; `squeeze` is the width of squeeze-and-excitation, 0 for none."""

    kernel: int
    hidden: int
    outputs: int
    stride: int
    activation: Activation
    squeeze: int = 0


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int, activation: Activation, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        activation(),
    )


class SqueezeExcitation(nn.Module):
    """Channels weighted by a function of their means. Hu, Shen, Sun: CVPR 2018."""

    def __init__(self, channels: int, width: int, activation: Activation, gate: Activation) -> None:
        super().__init__()
        self.weights = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1), activation(),
            nn.Conv2d(width, channels, 1), gate(),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        weighted: Tensor = images * self.weights(images)
        return weighted


class InvertedResidual(nn.Module):
    """Widen, filter by channel, weigh the channels, narrow; plus the input where shapes allow."""

    def __init__(self, inputs: int, block: Block, squeeze: Callable[..., nn.Module]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if block.hidden != inputs:
            layers.append(_convolution(inputs, block.hidden, 1, 1, block.activation))
        layers.append(
            _convolution(
                block.hidden, block.hidden, block.kernel, block.stride, block.activation,
                groups=block.hidden,
            )
        )  # fmt: skip
        if block.squeeze:
            layers.append(squeeze(block.hidden, block.squeeze))
        layers.append(_convolution(block.hidden, block.outputs, 1, 1, nn.Identity))
        self.body = nn.Sequential(*layers)
        self.adds = block.stride == 1 and inputs == block.outputs

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.body(images)
        return images + output if self.adds else output


class MobileNet(nn.Sequential):
    """A stem of stride 2, blocks, a last convolution, the mean over places and a head."""

    def __init__(
        self,
        stem: int,
        blocks: Sequence[Block],
        last: int,
        head: Callable[[int], Sequence[nn.Module]],
        outer: Activation,
        squeeze: Callable[..., nn.Module] = SqueezeExcitation,
    ) -> None:
        layers: list[nn.Module] = [_convolution(3, stem, 3, 2, outer)]
        inputs = stem
        for block in blocks:
            layers.append(InvertedResidual(inputs, block, squeeze))
            inputs = block.outputs
        layers.append(_convolution(inputs, last, 1, 1, outer))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head(last))


def _stages(
    stem: int, rows: Sequence[tuple[int, int, int, int, int]], activation: Activation, squeeze: bool
) -> list[Block]:
    """Blocks from rows of expansion, outputs, repetitions, stride of the first and kernel."""
    blocks, inputs = [], stem
    for expansion, outputs, count, stride, kernel in rows:
        for index in range(count):
            hidden, step = expansion * inputs, 1 if index else stride
            width = max(1, inputs // 4) if squeeze else 0
            blocks.append(Block(kernel, hidden, outputs, step, activation, width))
            inputs = outputs
    return blocks


def _dropped(classes: int) -> Callable[[int], Sequence[nn.Module]]:
    return lambda width: (nn.Dropout(0.2), nn.Linear(width, classes))


def _v2(
    stem: int, rows: Sequence[tuple[int, int, int, int, int]], last: int, classes: int
) -> nn.Module:
    return MobileNet(
        stem, _stages(stem, rows, nn.ReLU6, False), last, _dropped(classes), nn.ReLU6
    )  # fmt: skip


def _v3_head(hidden: int, classes: int) -> Callable[[int], Sequence[nn.Module]]:
    return lambda width: (
        nn.Linear(width, hidden), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(hidden, classes),
    )  # fmt: skip


def _v3(stem: int, blocks: Sequence[Block], last: int, hidden: int, classes: int) -> nn.Module:
    squeeze = partial(SqueezeExcitation, activation=nn.ReLU, gate=nn.Hardsigmoid)
    return MobileNet(stem, blocks, last, _v3_head(hidden, classes), nn.Hardswish, squeeze)


def _efficient(
    stem: int, rows: Sequence[tuple[int, int, int, int, int]], last: int, classes: int
) -> nn.Module:
    squeeze = partial(SqueezeExcitation, activation=nn.SiLU, gate=nn.Sigmoid)
    return MobileNet(
        stem, _stages(stem, rows, nn.SiLU, True), last, _dropped(classes), nn.SiLU, squeeze
    )  # fmt: skip


_V2_ROWS = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3), (6, 320, 1, 1, 3),
)  # fmt: skip
_B0_ROWS = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
)  # fmt: skip
_V3_SMALL = (
    Block(3, 16, 16, 2, nn.ReLU, 8),
    Block(3, 72, 24, 2, nn.ReLU),
    Block(3, 88, 24, 1, nn.ReLU),
    Block(5, 96, 40, 2, nn.Hardswish, 24),
    Block(5, 240, 40, 1, nn.Hardswish, 64),
    Block(5, 240, 40, 1, nn.Hardswish, 64),
    Block(5, 120, 48, 1, nn.Hardswish, 32),
    Block(5, 144, 48, 1, nn.Hardswish, 40),
    Block(5, 288, 96, 2, nn.Hardswish, 72),
    Block(5, 576, 96, 1, nn.Hardswish, 144),
    Block(5, 576, 96, 1, nn.Hardswish, 144),
)
_TINY_ROWS = ((1, 4, 1, 1, 3), (2, 6, 2, 2, 3))
_V3_TINY = (
    Block(3, 4, 4, 1, nn.ReLU, 2), Block(5, 8, 4, 1, nn.Hardswish),
    Block(3, 8, 6, 2, nn.Hardswish, 2),
)  # fmt: skip


def _case(side: int, classes: int, build: Callable[..., nn.Module], *settings: object) -> Case:
    image = TensorSignature("image", (3, side, side), "float32")
    label = TensorSignature("label", (), "int64", classes)
    model = partial(build, *settings, classes)
    return Case(model, (image,), (label,), optimizer=SMALL_STEPS)


MODELS = {
    "MobileNetV2": Whole(
        _case(96, 10, _v2, 32, _V2_ROWS, 1280), _case(16, 4, _v2, 4, _TINY_ROWS, 8)
    ),
    "MobileNetV3-small": Whole(
        _case(96, 10, _v3, 16, _V3_SMALL, 576, 1024), _case(16, 4, _v3, 4, _V3_TINY, 8, 8)
    ),
    "EfficientNet-B0": Whole(
        _case(96, 10, _efficient, 32, _B0_ROWS, 1280), _case(16, 4, _efficient, 4, _TINY_ROWS, 8)
    ),
}
