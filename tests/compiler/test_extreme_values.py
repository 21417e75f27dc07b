"""Operators where random numbers never fall: at kinks, far out, and at the ends of a dtype."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.compiler.lowering import assert_same, through_onnx

FAR = torch.tensor([0, 0.5, 1, 3, 6, 20, 90, 200, 1e4])
POINTS = torch.cat([-FAR.flip(0), FAR])

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        F.relu, F.relu6, F.gelu, F.silu, F.mish, F.elu, F.selu, F.celu, F.hardswish, F.hardsigmoid,
        F.hardtanh, F.leaky_relu, F.softplus, F.logsigmoid, F.tanhshrink, F.softsign,
        torch.tanh, torch.sigmoid, torch.expm1, torch.erf, torch.atan, torch.asinh,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_far_out_and_at_its_kinks(name: str) -> None:
    """The value and the gradient that torch has there, infinite where it is."""

    def step(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.enable_grad():
            leaf = tensors["x"].detach().requires_grad_()
            value = ACTIVATIONS[name](leaf)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return {"value": value.detach(), "gradient": gradient}

    assert_same(step, {"x": POINTS}, 1e-4, 1e-6)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("divisor", [3, -3, 1, 7])
def test_whole_numbers_divided_and_rounded_down(dtype: torch.dtype, divisor: int) -> None:
    ends = torch.iinfo(dtype)
    x = torch.tensor([ends.min, ends.min + 1, -7, -6, -1, 0, 1, 6, 7, ends.max], dtype=dtype)
    found = through_onnx(lambda t: {"y": t["x"] // divisor}, {"x": x})["y"]
    np.testing.assert_array_equal(found, (x // divisor).numpy())


def test_a_number_beyond_the_dtype_wraps_around() -> None:
    x = torch.tensor([0, 3, 255], dtype=torch.uint8)
    found = through_onnx(lambda t: {"y": torch.where(t["x"] > 3, t["x"], -1)}, {"x": x})["y"]
    np.testing.assert_array_equal(found, torch.where(x > 3, x, -1).numpy())


def test_the_logarithm_of_one_plus_a_large_number() -> None:
    x = torch.tensor([0.0, 1e-7, 1.0, 1e30, 3e38])
    found = through_onnx(lambda t: {"y": t["x"].log1p()}, {"x": x})["y"]
    np.testing.assert_allclose(found, x.log1p().numpy(), rtol=1e-6)
