"""Layers and losses beyond the small zoo: their traces stay inside the allow-list."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coordinator.compiler.aten_form import to_json
from coordinator.compiler.rewrites import PortableFunctions
from coordinator.compiler.trace import trace_forward
from edge_client.trainers.torch_aten import load_graph
from headwater.aten_json import read_graph
from tests.compiler.lowering import numbered
from tests.compiler.test_functions import FAMILIES
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
    "lstm": (lambda: nn.LSTM(6, 4, 2, bidirectional=True, batch_first=True), (5, 6)),
    "gru": (lambda: nn.GRU(6, 4, batch_first=True), (5, 6)),
    "rnn": (lambda: nn.RNN(6, 4, nonlinearity="relu", batch_first=True), (5, 6)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (5, 8)
    ),
    "rms norm": (lambda: nn.RMSNorm(6), (3, 6)),
    "spectral norm": (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)).eval(), (6,)
    ),
    "same padding": (lambda: nn.Conv2d(4, 3, 3, padding="same"), (4, 5, 5)),
    "circular padding": (
        lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), (4, 5, 5)
    ),
    "bilinear upsampling": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (4, 3, 3)),
    "nearest upsampling": (lambda: nn.Upsample(size=7), (4, 3, 3)),
    "in place": (lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)), (6,)),
}  # fmt: skip

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x),
    "cumulative sum": lambda x: x.cumsum(1) * x.cumprod(2),
    "masked": lambda x: x.masked_fill(x > 0, 0.0) + torch.where(x > 1, x, -x),
    "largest": lambda x: x.topk(2).values.sum(-1) + x.sort(-1).values[..., 0] + x.amax(-1),
    "gathered": lambda x: x.gather(2, x.argsort(-1)),
    "scattered": lambda x: torch.zeros_like(x).scatter_add(2, x.argsort(-1), x.clone()),
    "written in parts": lambda x: _written_in_parts(x),
    "rolled": lambda x: x.roll(1, 2).flip(1) * x.transpose(1, 2).reshape(x.shape),
    "padded": lambda x: F.pad(x, (1, 2), "reflect").square() if x.dim() else x,
    "norms": lambda x: F.normalize(x, dim=-1) + F.cosine_similarity(x, x.roll(1, 1), -1)[..., None],
    "split": lambda x: sum(x.chunk(2, -1)) + sum(x.split([1, 5], -1)).mean(),
    "repeated": lambda x: x.repeat_interleave(2, 1) * x.repeat(1, 2, 1),
    "one hot": lambda x: F.one_hot(x.argmax(-1), 6) * x,
    "statistics": lambda x: (
        x.std(-1, keepdim=True) + torch.var_mean(x, -1)[0][..., None] + x.mean()
    ),
    "mesh": lambda x: x + torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")[0],
}

CLASS_WEIGHTS = torch.rand(6)


def _written_in_parts(x: Tensor) -> Tensor:
    result = x.new_zeros(x.shape)
    result[:, 1:] = x[:, :-1] * 2
    result[..., 0] += 1
    return result.mul_(x)


def first(result: Any) -> Tensor:
    """The output of a layer that may give its state too."""
    tensor: Tensor = result[0] if isinstance(result, tuple) else result
    return tensor


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
    "cosine": lambda x: F.cosine_embedding_loss(x, x.roll(1, 0), x[:, 0].detach().sign()),
    "triplet": lambda x: F.triplet_margin_loss(x, x.roll(1, 0), x.roll(2, 0)),
    "norm": lambda x: x.norm() + x.std() + x.var(0).sum() + x.logsumexp(1).mean(),
}


def check(function: Callable[[Tensor], Tensor], example: Tensor) -> None:
    """The loaded graph has the function's value and, by autograd, its gradient."""
    step = load_graph(read_graph(written(lambda x: [function(x)], example)), torch.device("cpu"))
    found = []
    for run in (lambda x: step(x)[0], function):
        leaf = example[:4].clone()
        if leaf.is_floating_point():
            value = run(leaf.requires_grad_())
            found.append((value, *torch.autograd.grad(value, leaf)))
        else:
            found.append((run(leaf),))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build().requires_grad_(False)
    check(lambda x: first(layer(x)).square().sum(), torch.randn(7, *shape))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    torch.manual_seed(0)
    check(lambda x: FUNCTIONS[name](x).sum(), torch.randn(7, 4, 6))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_onnx_form_has_the_torch_form_has_too(name: str) -> None:
    family = FAMILIES[name]
    tensors = numbered(*family.tensors)

    def step(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with PortableFunctions(torch.tensor(0), only_random=True):
            return {name: run(*given.values()) for name, run in family.functions.items()}

    traced = trace_forward(step, tensors, family.batched, nn.Identity())
    data = to_json(traced.module, traced.inputs, traced.outputs)
    found = load_graph(read_graph(data), torch.device("cpu"))(*tensors.values())
    for function_name, result in zip(traced.outputs, found, strict=True):
        wanted = family.functions[function_name](*family.tensors)
        torch.testing.assert_close(result, wanted, msg=function_name)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    torch.manual_seed(0)
    check(LOSSES[name], torch.randn(7, 6))


def test_embeddings() -> None:
    table, bag = nn.Embedding(9, 4, padding_idx=0), nn.EmbeddingBag(9, 4, mode="mean")
    check(lambda x: table(x).sum() + bag(x).sum(), torch.randint(0, 9, (7, 5)))
