"""Normalizations."""

from torch import Tensor, nn

from tests.parity.layer import IMAGE, SEQUENCE, SIGNAL, VECTOR, VOLUME, Layer


class Frozen(nn.Module):
    """A BatchNorm that stays in evaluation mode: its statistics are used and never change."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.add_(0.3)  # type: ignore[union-attr]
        self.norm.running_var.mul_(1.7)  # type: ignore[union-attr]

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.norm(self.convolution(features))
        return found


LAYERS = {
    "BatchNorm1d": Layer(lambda: nn.BatchNorm1d(6), VECTOR),
    "BatchNorm1d, signal": Layer(lambda: nn.BatchNorm1d(4), SIGNAL),
    "BatchNorm2d": Layer(lambda: nn.BatchNorm2d(4), IMAGE),
    "BatchNorm2d, momentum None": Layer(lambda: nn.BatchNorm2d(4, momentum=None), IMAGE),
    "BatchNorm2d, no statistics": Layer(
        lambda: nn.BatchNorm2d(4, track_running_stats=False), IMAGE
    ),
    "BatchNorm2d, not affine": Layer(lambda: nn.BatchNorm2d(4, affine=False), IMAGE),
    "BatchNorm2d, frozen": Layer(Frozen, IMAGE),
    "BatchNorm3d": Layer(lambda: nn.BatchNorm3d(2), VOLUME),
    "SyncBatchNorm": Layer(lambda: nn.SyncBatchNorm(4), IMAGE),
    "GroupNorm": Layer(lambda: nn.GroupNorm(2, 4), IMAGE),
    "GroupNorm, signal": Layer(lambda: nn.GroupNorm(4, 4, affine=False), SIGNAL),
    "InstanceNorm1d": Layer(lambda: nn.InstanceNorm1d(4), SIGNAL),
    "InstanceNorm2d": Layer(lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "InstanceNorm2d, statistics": Layer(
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE
    ),
    "InstanceNorm3d": Layer(lambda: nn.InstanceNorm3d(2, affine=True), VOLUME),
    "LayerNorm": Layer(lambda: nn.LayerNorm(6), SEQUENCE),
    "LayerNorm, two dimensions, no bias": Layer(lambda: nn.LayerNorm((3, 6), bias=False), SEQUENCE),
    "LayerNorm, not affine": Layer(lambda: nn.LayerNorm(6, elementwise_affine=False), SEQUENCE),
    "LocalResponseNorm": Layer(lambda: nn.LocalResponseNorm(3), IMAGE),
    "RMSNorm": Layer(lambda: nn.RMSNorm(6), SEQUENCE),
    "RMSNorm, epsilon": Layer(lambda: nn.RMSNorm((3, 6), eps=1e-3), SEQUENCE),
}

REFUSED: dict[str, tuple[Layer, str]] = {}
