"""Writing the torch form of a trace: functional, deterministic, and refused at compile time."""

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

from coordinator.compiler.aten_form import functional, to_json
from edge_client.trainers.torch_aten import load_graph
from headwater.aten_json import read_graph
from headwater.aten_operators import OPERATORS
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


def written(function: Function, *examples: Tensor) -> bytes:
    module = trace(function, *examples)
    results: Any = module.graph.output_node().args[0]
    outputs = len(results)
    return to_json(
        module, [f"i{n}" for n in range(len(examples))], [f"o{n}" for n in range(outputs)]
    )


def loaded(data: bytes) -> fx.GraphModule:
    return load_graph(read_graph(data), torch.device("cpu"))


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
    data = written(normalized, *NORM)
    names = {node.operator for node in read_graph(data).nodes}
    assert "aten._native_batch_norm_legit_functional.default" in names
    assert not [name for name in names if "_." in name]

    values = (*(tensor.clone() for tensor in NORM[:-1]), torch.rand(4, 3, 4, 4))
    before = [value.clone() for value in values]
    for found, expected in zip(loaded(data)(*values), normalized(*values), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for value, old in zip(values, before, strict=True):
        torch.testing.assert_close(value, old, rtol=0, atol=0)


def test_a_trace_is_left_as_it_is_and_gives_the_same_bytes_again() -> None:
    module = trace(normalized, *NORM)
    before = module.code
    names = (list("abcde"), list("wxyz"))
    assert to_json(module, *names) == to_json(module, *names)
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


def test_a_batch_norm_in_evaluation_keeps_its_statistics() -> None:
    def evaluated(mean: Tensor, variance: Tensor, x: Tensor) -> list[Tensor]:
        return [F.batch_norm(x, mean, variance, training=False)]

    values = (torch.rand(3), torch.rand(3), torch.rand(5, 3))
    found = loaded(written(evaluated, *values))(*values)[0]
    torch.testing.assert_close(found, evaluated(*values)[0], rtol=0, atol=0)


def test_statistics_of_the_batch_alone() -> None:
    def instance(x: Tensor) -> list[Tensor]:
        return [F.batch_norm(x, None, None, training=True)]

    x = torch.rand(5, 3)
    torch.testing.assert_close(loaded(written(instance, x))(x)[0], instance(x)[0])


def test_small_constants_are_inlined_exactly() -> None:
    table = torch.tensor([0.1, float("inf"), -0.0])

    def scaled(x: Tensor) -> list[Tensor]:
        return [x * table]

    x = torch.rand(4, 3)
    torch.testing.assert_close(loaded(written(scaled, x))(x)[0], x * table, rtol=0, atol=0)


def test_a_large_constant_is_refused_with_what_to_do() -> None:
    table = torch.zeros(300_000)

    def scaled(x: Tensor) -> list[Tensor]:
        return [x + table.sum()]

    with pytest.raises(CompileError, match=r"a constant of 1200000 bytes .* register_buffer"):
        written(scaled, torch.rand(4))


def test_unsupported_operators_are_all_named_with_their_module() -> None:
    def unusual(x: Tensor) -> list[Tensor]:
        return [torch.lgamma(x) + torch.special.i0(x)]

    module = trace(unusual, torch.rand(4))
    for node in module.graph.nodes:
        node.meta["nn_module_stack"] = {"": ("", ""), "head.gamma": ("head.gamma", "")}
    with pytest.raises(CompileError) as caught:
        to_json(module, ["x"], ["y"])
    assert "aten.lgamma.default in module 'head.gamma'" in str(caught.value)
    assert "aten.special_i0" in str(caught.value) or "aten.i0" in str(caught.value)


def test_a_constant_output_is_refused() -> None:
    module = trace(lambda x: [x, x.shape[1]], torch.rand(4, 2))
    with pytest.raises(CompileError, match="output 'metric' is the constant 2"):
        to_json(module, ["x"], ["loss", "metric"])


def test_strings_outside_the_words_are_refused() -> None:
    module = trace(lambda x: [F.gelu(x, approximate="tanh")], torch.rand(4))
    (node,) = module.graph.find_nodes(op="call_function", target=torch.ops.aten.gelu.default)
    node.kwargs = {"approximate": "cubic"}
    with pytest.raises(CompileError, match="with 'cubic', which no plan can hold"):
        to_json(module, ["x"], ["y"])


def test_a_write_that_torch_cannot_turn_around_is_refused() -> None:
    module = trace(lambda x: [F.cosine_similarity(x, x + 1)], torch.rand(4, 3))
    with pytest.raises(CompileError, match=r"writes tensors in place .*aten\.clamp_min_\.Tensor"):
        to_json(module, ["x"], ["y"])


def test_names_must_fit_the_trace() -> None:
    module = trace(lambda x: [x + 1], torch.rand(4))
    with pytest.raises(ValueError, match="2 and 1 names for a trace of 1 inputs and 1 outputs"):
        to_json(module, ["x", "y"], ["z"])


def test_redundant_copies_are_left_out_and_needed_ones_kept() -> None:
    def copied(x: Tensor) -> list[Tensor]:
        spread = x.detach().clone().unsqueeze(0).expand(2, *x.shape).clone()
        return [spread.view(-1), x.t().t()]

    data = written(copied, torch.rand(4, 3))
    names = [node.operator for node in read_graph(data).nodes]
    assert names.count("aten.clone.default") == 1
    assert "aten.detach.default" not in names
    assert "aten.t.default" not in names
    assert set(names) <= OPERATORS
    x = torch.rand(5, 3)
    flat, same = loaded(data)(x)
    torch.testing.assert_close(flat, torch.cat([x, x]).view(-1))
    torch.testing.assert_close(same, x)
