"""Layers that change the size of images, and padding."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.layer import IMAGE, SIGNAL, VOLUME, Function, Layer


def _upsample(shape: tuple[int, ...], **settings: object) -> Layer:
    return Layer(lambda: nn.Upsample(**settings), shape)  # type: ignore[arg-type]


def _image(build: Callable[[], nn.Module]) -> Layer:
    return Layer(build, IMAGE)


class Aligning(nn.Module):
    """An affine map that the image itself gives: Jaderberg et al., NeurIPS 2015."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4 * 8 * 8, 6)
        nn.init.normal_(self.map.weight, std=0.01)
        self.map.bias.data = torch.tensor([0.9, 0.1, 0.05, -0.1, 0.8, 0.03])

    def forward(self, images: Tensor) -> Tensor:
        theta = self.map(images.flatten(1)).reshape(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)


LAYERS = {
    "Upsample, nearest": _upsample(IMAGE, scale_factor=2),
    "Upsample, nearest, size": _upsample(IMAGE, size=(11, 5)),
    "Upsample, nearest, 1d": _upsample(SIGNAL, scale_factor=3),
    "Upsample, nearest, 3d": _upsample(VOLUME, scale_factor=2),
    "Upsample, nearest-exact": _upsample(IMAGE, size=(11, 5), mode="nearest-exact"),
    "Upsample, bilinear": _upsample(IMAGE, scale_factor=2, mode="bilinear"),
    "Upsample, bilinear, aligned corners": _upsample(
        IMAGE, size=(11, 5), mode="bilinear", align_corners=True
    ),
    "Upsample, bicubic": _upsample(IMAGE, scale_factor=1.5, mode="bicubic"),
    "Upsample, linear": _upsample(SIGNAL, scale_factor=2, mode="linear"),
    "Upsample, trilinear": _upsample(VOLUME, scale_factor=2, mode="trilinear"),
    "interpolate, antialiased": _image(
        lambda: Function(lambda x: F.interpolate(x, (5, 3), mode="bilinear", antialias=True))
    ),
    "PixelShuffle": _image(lambda: nn.PixelShuffle(2)),
    "PixelUnshuffle": _image(lambda: nn.PixelUnshuffle(2)),
    "ChannelShuffle": _image(lambda: nn.ChannelShuffle(2)),
    "Unfold": _image(lambda: nn.Unfold(3, padding=1, stride=2)),
    "Fold": Layer(lambda: nn.Fold((5, 4), 2, stride=(2, 1), padding=(1, 0)), (8, 9)),
    "affine_grid and grid_sample": _image(Aligning),
    "ZeroPad1d": Layer(lambda: nn.ZeroPad1d(1), SIGNAL),
    "ZeroPad2d": _image(lambda: nn.ZeroPad2d((1, -2, 2, 0))),
    "ConstantPad3d": Layer(lambda: nn.ConstantPad3d(1, 0.5), VOLUME),
    "ReflectionPad1d": Layer(lambda: nn.ReflectionPad1d(2), SIGNAL),
    "ReflectionPad2d": _image(lambda: nn.ReflectionPad2d(1)),
    "ReplicationPad3d": Layer(lambda: nn.ReplicationPad3d(1), VOLUME),
    "CircularPad2d": _image(lambda: nn.CircularPad2d(1)),
}

REFUSED = {
    "grid_sample, reflection": (
        _image(
            lambda: Function(
                lambda x: F.grid_sample(
                    x,
                    x[..., :2].permute(0, 2, 3, 1)[..., :2],
                    padding_mode="reflection",
                    align_corners=False,
                )
            )
        ),
        "grid_sample is supported for images, with mode 'bilinear' or 'nearest'",
    ),
}
