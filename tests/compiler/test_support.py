"""What compiles and what does not, layer by layer and loss by loss: the tables of docs/plan.md.

Each compile passes the parity gate, with an open batch size, or is refused with the stated words.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from coordinator.compiler.compile import compile_plan
from coordinator.compiler.losses import LOSS_NAMES
from headwater.batch import TensorSignature
from headwater.errors import CompileError

pytestmark = pytest.mark.slow

VECTOR, SEQUENCE, SIGNAL, IMAGE, VOLUME = (6,), (3, 6), (4, 8), (4, 8, 8), (2, 4, 4, 4)
CLASS = TensorSignature("label", (), "int64", 3)


class First(nn.Module):
    """The first of several results."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.inner(features)[0]
        return found


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.attention(features, features, features, need_weights=False)[0]
        return found


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(6, 4), VECTOR),
    "Bilinear": (lambda: Twice(nn.Bilinear(6, 6, 4)), VECTOR),
    "Conv1d": (lambda: nn.Conv1d(4, 3, 3, 2, 1), SIGNAL),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), IMAGE),
    "Conv2d, dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2), IMAGE),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), VOLUME),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 3, 3, 2), SIGNAL),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), IMAGE),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), VECTOR),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), IMAGE),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(2), VOLUME),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), IMAGE),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "LayerNorm": (lambda: nn.LayerNorm(6), SEQUENCE),
    "RMSNorm": (lambda: nn.RMSNorm(6), SEQUENCE),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(2), IMAGE),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), SIGNAL),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, 1), IMAGE),
    "MaxPool3d": (lambda: nn.MaxPool3d(2), VOLUME),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), SIGNAL),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, 1), IMAGE),
    "AvgPool3d": (lambda: nn.AvgPool3d(2), VOLUME),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(2), SIGNAL),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(2), IMAGE),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(2), IMAGE),
    "LSTM": (lambda: First(nn.LSTM(6, 4, 2, batch_first=True)), SEQUENCE),
    "GRU": (lambda: First(nn.GRU(6, 4, batch_first=True, bidirectional=True)), SEQUENCE),
    "RNN": (lambda: First(nn.RNN(6, 4, batch_first=True)), SEQUENCE),
    "MultiheadAttention": (SelfAttention, SEQUENCE),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), SEQUENCE,
    ),
    "Dropout": (lambda: nn.Dropout(0.3), VECTOR),
    "Dropout2d": (lambda: nn.Dropout2d(0.3), IMAGE),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.3), VECTOR),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "Unfold": (lambda: nn.Unfold(3), IMAGE),
    "Upsample, nearest": (lambda: nn.Upsample(scale_factor=2), IMAGE),
    "Upsample, bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "ZeroPad2d": (lambda: nn.ZeroPad2d(1), IMAGE),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d(1), IMAGE),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), VECTOR),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)), VECTOR),
    **{
        kind.__name__: (kind, VECTOR)
        for kind in (
            nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.Hardswish,
            nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.Softshrink, nn.LeakyReLU, nn.PReLU,
            nn.RReLU, nn.Softplus, nn.LogSigmoid, nn.Tanh, nn.Sigmoid, nn.Tanhshrink, nn.Softsign,
            nn.GLU,
        )
    },
}  # fmt: skip


class Twice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.inner(features, features)
        return found


_BATCH = "fixes the batch size"
REFUSED = {
    "Bilinear": "cannot be traced in module",
    "LocalResponseNorm": _BATCH,
    "Unfold": _BATCH,
    "Upsample, nearest": _BATCH,
    "Upsample, bilinear": _BATCH,
    "MaxPool3d": r"aten.max_pool3d_with_indices.default .* not supported on devices",
    "AvgPool3d": r"aten.avg_pool3d.default .* not supported on devices",
    "AdaptiveMaxPool2d": r"aten.adaptive_max_pool2d.default .* not supported on devices",
    "AlphaDropout": "alpha_dropout is not supported: use dropout instead",
    "weight_norm": r"aten._weight_norm_interface_backward.default .* not supported on devices",
    "spectral_norm": r"aten.vdot.default .* not supported on devices",
    "Hardshrink": r"aten.hardshrink.* not supported on devices",
    "RReLU": "draws random numbers: only dropout draws alike",
}


def compile_layer(name: str) -> None:
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build()
    width = layer.eval()(torch.zeros(2, *shape)).flatten(1).shape[1]
    model = nn.Sequential(layer.train(), nn.Flatten(), nn.Linear(width, 3))
    compile_plan(
        model, "cross_entropy", [], {"name": "sgd", "learning_rate": 0.1},
        [TensorSignature("x", shape, "float32")], [CLASS], name="layer", batch_size=4, seed=1,
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in REFUSED])
def test_layers_that_compile(name: str) -> None:
    compile_layer(name)


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_are_refused(name: str) -> None:
    with pytest.raises(CompileError, match=REFUSED[name]):
        compile_layer(name)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_losses_that_compile(loss: str) -> None:
    sigmoid = nn.Sigmoid() if loss == "binary_cross_entropy" else nn.LogSoftmax(1)
    logits = loss in ("cross_entropy", "binary_cross_entropy_with_logits")
    model = nn.Sequential(nn.Linear(6, 3), nn.Identity() if logits else sigmoid)
    target = CLASS if loss in ("cross_entropy", "nll_loss") else TensorSignature("y", (3,), "bool")
    compile_plan(
        model, loss, [], {"name": "sgd", "learning_rate": 0.1},
        [TensorSignature("x", VECTOR, "float32")], [target], name="loss", batch_size=4, seed=1,
    )  # fmt: skip
