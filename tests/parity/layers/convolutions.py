"""Convolutions."""

from torch import nn

from tests.parity.layer import IMAGE, SIGNAL, VOLUME, Layer

LAYERS = {
    "Conv1d": Layer(lambda: nn.Conv1d(4, 3, 3, 2, 1), SIGNAL),
    "Conv1d, depthwise": Layer(lambda: nn.Conv1d(4, 8, 3, padding=1, groups=4), SIGNAL),
    "Conv1d, padding same": Layer(lambda: nn.Conv1d(4, 3, 4, padding="same"), SIGNAL),
    "Conv1d, circular": Layer(
        lambda: nn.Conv1d(4, 3, 3, padding=1, padding_mode="circular"), SIGNAL
    ),
    "Conv2d": Layer(lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), IMAGE),
    "Conv2d, 1x1": Layer(lambda: nn.Conv2d(4, 6, 1), IMAGE),
    "Conv2d, 1x1 strided": Layer(lambda: nn.Conv2d(4, 6, 1, 2, bias=False), IMAGE),
    "Conv2d, dilated": Layer(lambda: nn.Conv2d(4, 6, 3, dilation=2), IMAGE),
    "Conv2d, depthwise": Layer(lambda: nn.Conv2d(4, 4, 3, 2, 1, groups=4), IMAGE),
    "Conv2d, unequal sides": Layer(lambda: nn.Conv2d(4, 3, (3, 2), (2, 1), (0, 1)), IMAGE),
    "Conv2d, large window": Layer(lambda: nn.Conv2d(4, 4, (8, 9), padding=4, groups=2), IMAGE),
    "Conv2d, padding same": Layer(lambda: nn.Conv2d(4, 3, 4, padding="same", dilation=2), IMAGE),
    "Conv2d, padded and dilated": Layer(
        lambda: nn.Conv2d(4, 3, (3, 2), padding=(3, 1), dilation=(2, 1)), IMAGE
    ),
    "Conv2d, reflect": Layer(lambda: nn.Conv2d(4, 3, 3, padding=2, padding_mode="reflect"), IMAGE),
    "Conv2d, replicate": Layer(
        lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="replicate"), IMAGE
    ),
    "Conv2d, circular": Layer(
        lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), IMAGE
    ),
    "Conv3d": Layer(lambda: nn.Conv3d(2, 3, 2), VOLUME),
    "Conv3d, depthwise": Layer(lambda: nn.Conv3d(2, 2, 3, 2, 1, groups=2), VOLUME),
    "Conv3d, dilated": Layer(lambda: nn.Conv3d(2, 3, 2, dilation=2, padding="same"), VOLUME),
    "Conv3d, replicate": Layer(
        lambda: nn.Conv3d(2, 3, 3, padding=1, padding_mode="replicate"), VOLUME
    ),
    "ConvTranspose1d": Layer(lambda: nn.ConvTranspose1d(4, 3, 3, 2), SIGNAL),
    "ConvTranspose2d": Layer(lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), IMAGE),
    "ConvTranspose2d, grouped": Layer(lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2), IMAGE),
    "ConvTranspose2d, dilated": Layer(lambda: nn.ConvTranspose2d(4, 3, 3, dilation=2), IMAGE),
    "ConvTranspose3d": Layer(lambda: nn.ConvTranspose3d(2, 3, 3, 2, 1, 1), VOLUME),
}

REFUSED: dict[str, tuple[Layer, str]] = {}
