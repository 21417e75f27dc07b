"""Linear maps, dropout, resampling, padding, parametrizations."""

from torch import Tensor, nn

from tests.parity.layer import IMAGE, VECTOR, Layer


class Twice(nn.Module):
    """A layer of two inputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.inner(features, features)
        return found


LAYERS = {
    "Linear": Layer(lambda: nn.Linear(6, 4), VECTOR),
    "Dropout": Layer(lambda: nn.Dropout(0.3), VECTOR),
    "Dropout2d": Layer(lambda: nn.Dropout2d(0.3), IMAGE),
    "PixelShuffle": Layer(lambda: nn.PixelShuffle(2), IMAGE),
    "ZeroPad2d": Layer(lambda: nn.ZeroPad2d(1), IMAGE),
    "ReflectionPad2d": Layer(lambda: nn.ReflectionPad2d(1), IMAGE),
}

_BATCH = "fixes the batch size"
REFUSED = {
    "Bilinear": (Layer(lambda: Twice(nn.Bilinear(6, 6, 4)), VECTOR), "cannot be traced in module"),
    "AlphaDropout": (
        Layer(lambda: nn.AlphaDropout(0.3), VECTOR),
        "alpha_dropout is not supported: use dropout instead",
    ),
    "Unfold": (Layer(lambda: nn.Unfold(3), IMAGE), _BATCH),
    "Upsample, nearest": (Layer(lambda: nn.Upsample(scale_factor=2), IMAGE), _BATCH),
    "Upsample, bilinear": (
        Layer(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE), _BATCH,
    ),
    "weight_norm": (
        Layer(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), VECTOR),
        r"aten._weight_norm_interface_backward.default .* not supported on devices",
    ),
    "spectral_norm": (
        Layer(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)), VECTOR),
        r"aten.vdot.default .* is not supported on devices",
    ),
}  # fmt: skip
