"""Poolings."""

from torch import nn

from tests.parity.layer import IMAGE, SIGNAL, VOLUME, Layer

LAYERS = {
    "MaxPool1d": Layer(lambda: nn.MaxPool1d(2), SIGNAL),
    "MaxPool2d": Layer(lambda: nn.MaxPool2d(3, 2, 1), IMAGE),
    "AvgPool1d": Layer(lambda: nn.AvgPool1d(2), SIGNAL),
    "AvgPool2d": Layer(lambda: nn.AvgPool2d(3, 2, 1), IMAGE),
    "AdaptiveAvgPool1d": Layer(lambda: nn.AdaptiveAvgPool1d(2), SIGNAL),
    "AdaptiveAvgPool2d": Layer(lambda: nn.AdaptiveAvgPool2d(2), IMAGE),
}

REFUSED = {
    "MaxPool3d": (Layer(lambda: nn.MaxPool3d(2), VOLUME), "aten.max_pool3d_with_indices.default"),
    "AvgPool3d": (Layer(lambda: nn.AvgPool3d(2), VOLUME), "aten.avg_pool3d.default"),
    "AdaptiveMaxPool2d": (
        Layer(lambda: nn.AdaptiveMaxPool2d(2), IMAGE), "aten.adaptive_max_pool2d.default",
    ),
}  # fmt: skip
