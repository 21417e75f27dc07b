"""Convolutions."""

from torch import nn

from tests.parity.layer import IMAGE, SIGNAL, VOLUME, Layer

LAYERS = {
    "Conv1d": Layer(lambda: nn.Conv1d(4, 3, 3, 2, 1), SIGNAL),
    "Conv2d": Layer(lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), IMAGE),
    "Conv2d, dilated": Layer(lambda: nn.Conv2d(4, 6, 3, dilation=2), IMAGE),
    "Conv3d": Layer(lambda: nn.Conv3d(2, 3, 2), VOLUME),
    "ConvTranspose1d": Layer(lambda: nn.ConvTranspose1d(4, 3, 3, 2), SIGNAL),
    "ConvTranspose2d": Layer(lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), IMAGE),
}

REFUSED: dict[str, tuple[Layer, str]] = {}
