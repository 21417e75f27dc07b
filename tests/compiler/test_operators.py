"""Each operator through onnxruntime against eager torch, forward and backward."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headwater.errors import CompileError
from tests.compiler.lowering import assert_same, gradients_of, numbered, through_onnx

torch.manual_seed(0)
VECTOR = torch.randn(4, 6)
IMAGE = torch.randn(2, 4, 9, 9)
WIDE = torch.tensor([2**40 + 7, -(2**40) - 7, 2**24 + 1, -7, 7, 0])

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "logsigmoid": F.logsigmoid,
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, 0),
    "glu": F.glu,
    "normalize": F.normalize,
    "layer_norm": lambda x: F.layer_norm(x, (6,)),
    "logsumexp": lambda x: torch.logsumexp(x, 1),
    "var": lambda x: x.var(0),
    "std": lambda x: x.std(),
    "mean": lambda x: x.mean(1, keepdim=True),
    "amax": lambda x: x.amax(1),
    "largest": lambda x: x.amax(),
    "norm": lambda x: x.norm(),
    "exp": torch.exp,
    "log1p": lambda x: torch.log1p(x.abs() * 1e-4),
    "expm1": torch.expm1,
    "pow": lambda x: x.abs() ** 1.5,
    "cube": lambda x: x**3,
    "rsqrt": lambda x: (x * x + 1).rsqrt(),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "abs": torch.abs,
    "atan": torch.atan,
    "cumsum": lambda x: x.cumsum(1),
    "where": lambda x: torch.where(x > 0, x * 2, x - 1),
    "masked": lambda x: x.masked_fill(x > 1, 0),
    "slices": lambda x: torch.cat([x[:, 1:4], x[1:2, :3].expand(4, 3)], 1),
    "flip": lambda x: x.flip(1) * x,
    "steps": lambda x: x[:, ::2] * x[:, 1::2],
    "select": lambda x: x[:, 3] * x[2, 1],
    "roll": lambda x: x.roll(1, 1),
    "pad": lambda x: F.pad(x, (1, 2)),
    "tril": lambda x: x.tril(),
    "repeat": lambda x: x.repeat(2, 1),
    "stack": lambda x: torch.stack([x, x * x], 1),
    "unbind": lambda x: x.unbind(1)[2] * x.unbind(1)[0],
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "chunk": lambda x: x.chunk(3, 1)[1] ** 2,
    "bmm": lambda x: x.reshape(2, 2, 6) @ x.reshape(2, 6, 2),
    "index": lambda x: x[torch.tensor([3, 0, 3])],
    "index_select": lambda x: x.index_select(1, torch.tensor([2, 2])),
    "max_values": lambda x: x.max(1).values * x.min(0, keepdim=True).values[:, :4],
    "assigned": lambda x: x.slice_scatter(x[:, 1:3] * 2, 1, 0, 5, 3),
    "gather": lambda x: x.gather(1, torch.tensor([[0], [2], [5], [1]])),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_and_gradient(name: str) -> None:
    assert_same(gradients_of(FUNCTIONS[name]), numbered(VECTOR), rtol=3e-5)


IMAGES: dict[str, Callable[..., Tensor]] = {
    "plain": lambda x, w: F.conv2d(x, w),
    "strided": lambda x, w: F.conv2d(x, w, stride=2, padding=1),
    "dilated": lambda x, w: F.conv2d(x, w, dilation=2, padding=(2, 1)),
    "transposed": lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1),
    "max": lambda x, w: F.max_pool2d(F.conv2d(x, w), 2),
    "max_overlapping": lambda x, w: F.max_pool2d(F.conv2d(x, w), 3, 2, 1),
    "max_ragged": lambda x, w: F.max_pool2d(x * w.mean(), 4),
    "max_ceil": lambda x, w: F.max_pool2d(x * w.mean(), 2, ceil_mode=True),
    "average": lambda x, w: F.avg_pool2d(x * w.mean(), 2),
    "average_padded": lambda x, w: F.avg_pool2d(x * w.mean(), 3, 2, 1),
    "adaptive": lambda x, w: F.adaptive_avg_pool2d(x * w.mean(), 3),
    "group_norm": lambda x, w: F.group_norm(x * w.mean(), 2),
    "instance_norm": lambda x, w: F.instance_norm(x * w.mean()),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    weight = torch.randn(4, 4, 3, 3)
    assert_same(gradients_of(IMAGES[name]), numbered(IMAGE, weight), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("features", "weight", "settings"),
    [
        ((2, 4, 7, 7), (4, 1, 3, 3), {"groups": 4, "padding": 1}),
        ((2, 4, 7, 7), (6, 2, 3, 3), {"groups": 2, "stride": 2}),
        ((2, 3, 12, 12), (2, 3, 9, 9), {"padding": 2}),
        ((2, 3, 12, 12), (2, 3, 9, 9), {"stride": 2}),
        ((2, 40, 12, 12), (5, 40, 3, 3), {}),
    ],
)
def test_convolution_gradients(
    features: tuple[int, ...], weight: tuple[int, ...], settings: dict[str, int]
) -> None:
    def convolve(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.conv2d(x, w, b, **settings)

    tensors = numbered(torch.randn(features), torch.randn(weight), torch.randn(weight[0]))
    assert_same(gradients_of(convolve), tensors, rtol=1e-4, atol=1e-4)


def test_one_dimensional_convolution() -> None:
    def convolve(x: Tensor, w: Tensor) -> Tensor:
        return F.conv1d(x, w, stride=2, padding=2)

    assert_same(gradients_of(convolve), numbered(torch.randn(3, 4, 11), torch.randn(5, 4, 5)), 1e-4)


def test_ties_in_a_maximum_go_where_torch_sends_them() -> None:
    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2, 1)

    assert_same(gradients_of(pool), numbered(torch.zeros(2, 3, 8, 8)))


def test_embedding_with_a_padding_index() -> None:
    def embed(indices: Tensor, rows: Tensor) -> Tensor:
        return F.embedding(indices, rows, padding_idx=1)

    assert_same(gradients_of(embed), numbered(torch.randint(0, 5, (3, 4)), torch.randn(5, 2)))


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1}, {"ignore_index": 2}])
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3)])
def test_cross_entropy(settings: dict[str, float], shape: tuple[int, ...]) -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, **settings)  # type: ignore[arg-type]

    target = torch.randint(0, 4, (shape[0], *shape[2:]))
    assert_same(gradients_of(loss), numbered(torch.randn(shape), target))


def test_integer_arithmetic_is_exact() -> None:
    """The stock exporter divides integers in float32: wrong above 2**24."""
    assert_same(
        lambda t: {
            "floor": t["t0"] // 3, "floor_negative": t["t0"] // -3,
            "mode": torch.div(t["t0"], 5, rounding_mode="floor"),
            "truncated": torch.div(t["t0"], 5, rounding_mode="trunc"),
            "remainder": t["t0"] % 3, "remainder_negative": t["t0"] % -3,
            "product": t["t0"] * 3 + 1, "bits": (t["t0"] & 0xFF) ^ 5,
        },
        numbered(WIDE),
    )  # fmt: skip


def test_a_clamp_hands_on_what_is_not_a_number() -> None:
    """Else a model with ReLU6 would hide that it diverged; lengths of every vector path."""
    for count in (1, 4, 7, 8, 9, 16, 33):
        values = torch.full((count,), torch.nan)
        assert_same(lambda t: {"y": t["t0"].clamp(0.0, 6.0)}, numbered(values))


def test_types_are_promoted_as_torch_does() -> None:
    assert_same(
        lambda t: {
            "true_division": t["t0"] / 2, "mixed": t["t0"] + t["t1"], "compared": t["t0"] < 2.5,
            "bool_sum": (t["t1"] > 0).sum(), "bool_times": (t["t1"] > 0) * t["t1"],
            "any": (t["t1"] > 1).any(), "argmax": t["t1"].argmax(0), "not": ~(t["t1"] > 0),
            "whole_mean": (t["t0"] > 1).float().mean(), "logical": (t["t0"] > 1) | (t["t1"] > 0),
        },
        numbered(torch.tensor([1, 2, 3]), torch.randn(3)),
    )  # fmt: skip


def test_small_constants_survive() -> None:
    """The stock optimizer took 1e-8 for zero: sqrt(v) + 1e-8 became sqrt(v), then 0/0."""
    found = through_onnx(
        lambda t: {"y": t["t0"] / (t["t0"].sqrt() + 1e-8)}, numbered(torch.zeros(3))
    )
    assert found["y"].tolist() == [0.0, 0.0, 0.0]


def test_an_operator_without_a_translation_is_named() -> None:
    with pytest.raises(CompileError, match=r"aten.i0.default .*not supported on devices"):
        through_onnx(lambda t: {"y": torch.special.i0(t["t0"])}, numbered(VECTOR))


def test_batch_normalization_statistics() -> None:
    layer = nn.BatchNorm2d(4)

    def step(t: dict[str, Tensor]) -> dict[str, Tensor]:
        mean, variance = t["t1"].clone(), t["t2"].clone()
        y = F.batch_norm(t["t0"], mean, variance, None, None, True, 0.1, layer.eps)
        return {"y": y, "mean": mean, "variance": variance}

    assert_same(step, numbered(IMAGE, torch.randn(4), torch.rand(4)))  # type: ignore[arg-type]
