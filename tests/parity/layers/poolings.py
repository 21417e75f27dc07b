"""Poolings."""

from torch import Tensor, nn

from tests.parity.layer import IMAGE, SIGNAL, VOLUME, Layer

ODD_IMAGE = (3, 7, 9)


class Unpooled(nn.Module):
    """Pooled with the places of the maxima, and put back there."""

    def forward(self, features: Tensor) -> Tensor:
        pooled, places = nn.functional.max_pool2d(features, 2, return_indices=True)
        return nn.functional.max_unpool2d(pooled * pooled, places, 2)


LAYERS = {
    "MaxPool1d": Layer(lambda: nn.MaxPool1d(2), SIGNAL),
    "MaxPool1d, overlapping": Layer(lambda: nn.MaxPool1d(3, 2, 1), SIGNAL),
    "MaxPool2d": Layer(lambda: nn.MaxPool2d(3, 2, 1), IMAGE),
    "MaxPool2d, odd sizes": Layer(lambda: nn.MaxPool2d(2), ODD_IMAGE),
    "MaxPool2d, ceil mode": Layer(lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "MaxPool2d, dilated": Layer(lambda: nn.MaxPool2d(2, 1, dilation=2), IMAGE),
    "MaxPool2d, gaps": Layer(lambda: nn.MaxPool2d(2, 3, 1), ODD_IMAGE),
    "MaxPool2d, indices": Layer(Unpooled, IMAGE),
    "MaxPool3d": Layer(lambda: nn.MaxPool3d(2), VOLUME),
    "MaxPool3d, overlapping": Layer(lambda: nn.MaxPool3d(3, 2, 1, ceil_mode=True), VOLUME),
    "AvgPool1d": Layer(lambda: nn.AvgPool1d(2), SIGNAL),
    "AvgPool1d, ceil mode": Layer(lambda: nn.AvgPool1d(3, 2, ceil_mode=True), SIGNAL),
    "AvgPool2d": Layer(lambda: nn.AvgPool2d(3, 2, 1), IMAGE),
    "AvgPool2d, odd sizes": Layer(lambda: nn.AvgPool2d(2), ODD_IMAGE),
    "AvgPool2d, ceil mode": Layer(lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "AvgPool2d, padding not counted": Layer(
        lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE
    ),
    "AvgPool2d, divisor": Layer(lambda: nn.AvgPool2d(2, divisor_override=3), IMAGE),
    "AvgPool3d": Layer(lambda: nn.AvgPool3d(2), VOLUME),
    "AvgPool3d, padded": Layer(
        lambda: nn.AvgPool3d(3, 2, 1, ceil_mode=True, count_include_pad=False), VOLUME
    ),
    "LPPool2d": Layer(lambda: nn.LPPool2d(2, 2), IMAGE),
    "AdaptiveAvgPool1d": Layer(lambda: nn.AdaptiveAvgPool1d(2), SIGNAL),
    "AdaptiveAvgPool1d, unequal": Layer(lambda: nn.AdaptiveAvgPool1d(5), SIGNAL),
    "AdaptiveAvgPool2d": Layer(lambda: nn.AdaptiveAvgPool2d(2), IMAGE),
    "AdaptiveAvgPool2d, unequal": Layer(lambda: nn.AdaptiveAvgPool2d((3, 5)), ODD_IMAGE),
    "AdaptiveAvgPool3d": Layer(lambda: nn.AdaptiveAvgPool3d((2, 3, 1)), VOLUME),
    "AdaptiveMaxPool1d": Layer(lambda: nn.AdaptiveMaxPool1d(3), SIGNAL),
    "AdaptiveMaxPool2d": Layer(lambda: nn.AdaptiveMaxPool2d(2), IMAGE),
    "AdaptiveMaxPool2d, unequal": Layer(lambda: nn.AdaptiveMaxPool2d((3, 5)), ODD_IMAGE),
    "AdaptiveMaxPool3d": Layer(lambda: nn.AdaptiveMaxPool3d((2, 3, 1)), VOLUME),
}

REFUSED = {
    "FractionalMaxPool2d": (
        Layer(lambda: nn.FractionalMaxPool2d(2, output_size=3), IMAGE),
        "fractional max-pooling is not supported",
    ),
}  # fmt: skip
