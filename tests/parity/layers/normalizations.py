"""Normalizations."""

from torch import nn

from tests.parity.layer import IMAGE, SEQUENCE, VECTOR, VOLUME, Layer

LAYERS = {
    "BatchNorm1d": Layer(lambda: nn.BatchNorm1d(6), VECTOR),
    "BatchNorm2d": Layer(lambda: nn.BatchNorm2d(4), IMAGE),
    "BatchNorm3d": Layer(lambda: nn.BatchNorm3d(2), VOLUME),
    "GroupNorm": Layer(lambda: nn.GroupNorm(2, 4), IMAGE),
    "InstanceNorm2d": Layer(lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "LayerNorm": Layer(lambda: nn.LayerNorm(6), SEQUENCE),
    "RMSNorm": Layer(lambda: nn.RMSNorm(6), SEQUENCE),
}

REFUSED = {
    "LocalResponseNorm": (Layer(lambda: nn.LocalResponseNorm(2), IMAGE), "fixes the batch size"),
}
