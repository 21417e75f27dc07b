"""Writes turned around: no operator of a functional graph writes its arguments."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from coordinator.compiler.functional import functional
from headwater.errors import CompileError

Function = Callable[..., list[Tensor]]


def trace(function: Function, *examples: Tensor) -> fx.GraphModule:
    """A make_fx trace whose last example has a symbolic first dimension."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = []
    for index, tensor in enumerate(examples):
        sizes = [DimDynamic.STATIC] * tensor.dim()
        if index == len(examples) - 1:
            sizes[0] = DimDynamic.DUCK
        context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=sizes)
        fakes.append(mode.from_tensor(tensor, symbolic_context=context))
    with mode:
        return make_fx(function, tracing_mode="real", _allow_non_fake_inputs=True)(*fakes)


def normalized(
    weight: Tensor, mean: Tensor, variance: Tensor, count: Tensor, x: Tensor
) -> list[Tensor]:
    """A batch norm applied twice, as a shared layer is, with its buffers written in place."""
    mean, variance, count = mean.clone(), variance.clone(), count.clone()
    for _ in range(2):
        x = F.batch_norm(x, mean, variance, weight, None, training=True, momentum=0.2)
        count.add_(1)
    return [x, mean, variance, count]


NORM = (torch.rand(3), torch.rand(3), torch.rand(3), torch.tensor(0), torch.rand(7, 3, 4, 4))


def test_buffers_written_in_place_become_results() -> None:
    module = functional(trace(normalized, *NORM))
    names = {str(node.target) for node in module.graph.nodes if node.op == "call_function"}
    assert "aten._native_batch_norm_legit_functional.default" in names
    assert not [name for name in names if "_." in name]
    values = (*(tensor.clone() for tensor in NORM[:-1]), torch.rand(4, 3, 4, 4))
    before = [value.clone() for value in values]
    for found, expected in zip(module(*values), normalized(*values), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for value, old in zip(values, before, strict=True):
        torch.testing.assert_close(value, old, rtol=0, atol=0)


def written_twice(x: Tensor) -> list[Tensor]:
    first = x.sin()
    second = first.add_(x).mul_(x)
    return [first, second]


def written_beside_a_view(x: Tensor) -> list[Tensor]:
    fresh = x.sin()
    row = fresh[0]
    fresh.mul_(2)
    return [fresh, row]


def read_under_its_old_name(x: Tensor) -> list[Tensor]:
    fresh, count = x.sin(), torch.arange(3, dtype=torch.int32)
    before = fresh.sum()
    fresh.gt_(0)
    count.add_(torch.arange(3))
    return [fresh, before, count, fresh * 2]


OUTSIDE = torch.rand(3)


def with_a_tensor_from_outside(x: Tensor) -> list[Tensor]:
    return [x.sin().mul_(OUTSIDE)]


@pytest.mark.parametrize(
    "function",
    [written_twice, written_beside_a_view, read_under_its_old_name, with_a_tensor_from_outside],
)
def test_writes_to_tensors_of_its_own(function: Function) -> None:
    """The values and dtypes that torch gives, whoever else sees the memory."""
    module = functional(trace(function, torch.rand(7, 3)))
    assert not any(
        node.target._schema.is_mutable for node in module.graph.nodes if node.op == "call_function"
    )
    x = torch.rand(4, 3)
    for found, expected in zip(module(x), function(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_trace_is_left_as_it_is() -> None:
    module = trace(normalized, *NORM)
    before = module.code
    functional(module)
    assert module.code == before


def test_module_paths_survive() -> None:
    module = trace(normalized, *NORM)
    for node in module.graph.nodes:
        node.meta["nn_module_stack"] = {"block.norm": ("block.norm", "")}
    stacks = [
        node.meta.get("nn_module_stack", {})
        for node in functional(module).graph.nodes
        if node.op == "call_function"
    ]
    assert stacks
    assert all("block.norm" in stack for stack in stacks)


def test_a_write_that_torch_cannot_turn_around_is_refused() -> None:
    def clamped(x: Tensor) -> list[Tensor]:
        fresh = x * 2
        fresh[:, 0].clamp_min_(torch.scalar_tensor(0.5))
        return [fresh]

    module = trace(clamped, torch.rand(4, 3))
    with pytest.raises(CompileError, match=r"writes tensors in place .*aten\.clamp_min_\.Tensor"):
        functional(module)
