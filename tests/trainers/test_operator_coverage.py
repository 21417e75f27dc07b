"""Layers and losses beyond the small zoo: their traces stay inside the allow-list."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_client.trainers.torch_aten import load_graph
from headwater.aten_json import read_graph
from tests.trainers.test_aten_form import written

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, dilation=2), (4, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2), (4, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 3, 3), (4, 8)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(6, track_running_stats=False), (6,)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 5, 5)),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), (4, 5, 5)),
    "layer norm": (lambda: nn.LayerNorm(6), (3, 6)),
    "average pool": (lambda: nn.AvgPool2d(3, 2, 1), (4, 8, 8)),
    "adaptive pool": (lambda: nn.AdaptiveAvgPool2d(2), (4, 8, 8)),
    "max pool": (lambda: nn.MaxPool2d(3, 2, 1), (4, 8, 8)),
    **{
        kind.__name__: (kind, (6,))
        for kind in (
            nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.Hardswish,
            nn.Hardsigmoid, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.Softplus, nn.LogSigmoid,
            nn.Tanh, nn.Sigmoid, nn.Tanhshrink, nn.Softsign, nn.GLU,
        )
    },
    "softmax": (lambda: nn.Softmax(-1), (6,)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), (6,)),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), (4, 3, 3)),
}  # fmt: skip

CLASS_WEIGHTS = torch.rand(6)

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross entropy": lambda x: F.cross_entropy(x, x.argmax(1), label_smoothing=0.1),
    "weighted cross entropy": lambda x: F.cross_entropy(x, x.argmax(1), weight=CLASS_WEIGHTS),
    "mean squared": lambda x: F.mse_loss(x, x.detach() + 1),
    "mean absolute": lambda x: F.l1_loss(x, x.detach() + 1),
    "huber": lambda x: F.huber_loss(x, x.detach() + 2),
    "smooth l1": lambda x: F.smooth_l1_loss(x, x.detach() + 2),
    "binary": lambda x: F.binary_cross_entropy(x.sigmoid(), (x > 0).float()),
    "binary with logits": lambda x: F.binary_cross_entropy_with_logits(x, (x > 0).float()),
    "divergence": lambda x: F.kl_div(
        x.log_softmax(1), x.detach().softmax(1), reduction="batchmean"
    ),
    "margin": lambda x: F.soft_margin_loss(x, x.detach().sign()),
    "norm": lambda x: x.norm() + x.std() + x.var(0).sum() + x.logsumexp(1).mean(),
}


def gradient(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], list[Tensor]]:
    """A step: a scalar of the input and its gradient, as a training trace has them."""

    def step(x: Tensor) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            value = function(leaf)
            (slope,) = torch.autograd.grad(value, leaf)
        return [value.detach(), slope]

    return step


def check(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    step = gradient(function)
    graph = read_graph(written(step, torch.randn(7, *shape)))
    x = torch.randn(4, *shape)
    for found, expected in zip(load_graph(graph, torch.device("cpu"))(x), step(x), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build().requires_grad_(False)
    check(lambda x: layer(x).square().sum(), shape)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    check(LOSSES[name], (6,))
