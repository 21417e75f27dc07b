"""Writing the torch form of a trace: as it is called, deterministic, or refused with a reason."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from coordinator.compiler.aten_form import to_json
from coordinator.compiler.rewrites import PortableFunctions
from coordinator.compiler.trace import TracedStep, trace_forward
from edge_client.trainers.torch_aten import load_graph
from headwater.aten_json import read_graph
from headwater.errors import CompileError

Function = Callable[..., list[Tensor]]


def traced(function: Function, *examples: Tensor) -> TracedStep:
    """A trace of `i0`, `i1`, ... to `o0`, `o1`, ...; the last example has a batch dimension."""

    def step(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"o{n}": value for n, value in enumerate(function(*tensors.values()))}

    named = {f"i{n}": example for n, example in enumerate(examples)}
    return trace_forward(step, named, [f"i{len(examples) - 1}"], nn.Identity())


def written(function: Function, *examples: Tensor) -> bytes:
    step = traced(function, *examples)
    return to_json(step.module, step.inputs, step.outputs)


def loaded(data: bytes) -> fx.GraphModule:
    return load_graph(read_graph(data), torch.device("cpu"))


def names(data: bytes) -> list[str]:
    return [node.operator for node in read_graph(data).nodes]


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


def test_buffers_are_written_in_the_order_of_the_program() -> None:
    data = written(normalized, *NORM)
    assert names(data).count("aten.batch_norm.default") == 2
    assert "aten.add_.Tensor" in names(data)
    values = (*(tensor.clone() for tensor in NORM[:-1]), torch.rand(4, 3, 4, 4))
    before = [value.clone() for value in values]
    for found, expected in zip(loaded(data)(*values), normalized(*values), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for value, old in zip(values, before, strict=True):
        torch.testing.assert_close(value, old, rtol=0, atol=0)


def test_a_trace_is_left_as_it_is_and_gives_the_same_bytes_again() -> None:
    step = traced(lambda x: [(x + 1).mul_(2)], torch.rand(4, 3))
    before = step.module.code
    one, two = (to_json(step.module, ["x"], ["y"]) for _ in range(2))
    assert one == two
    assert step.module.code == before


def test_layers_are_one_call_each() -> None:
    layer = nn.LSTM(3, 4, batch_first=True).requires_grad_(False)

    def called(x: Tensor) -> list[Tensor]:
        hidden = layer(x)[0]
        return [F.scaled_dot_product_attention(hidden, hidden, hidden, is_causal=True)]

    data = written(called, torch.rand(7, 5, 3))
    assert {"aten.lstm.input", "aten.scaled_dot_product_attention.default"} <= set(names(data))
    assert not [name for name in names(data) if "mm" in name]


def test_what_has_no_name_of_its_own_is_taken_apart() -> None:
    data = written(lambda x: [torch.einsum("bij,bkj->bik", x, x)], torch.rand(7, 2, 3))
    assert "aten.bmm.default" in names(data)
    x = torch.rand(4, 2, 3)
    torch.testing.assert_close(loaded(data)(x)[0], x @ x.transpose(1, 2))


def test_dropout_is_one_call_and_draws_the_mask_of_the_seed() -> None:
    def dropped(seed: Tensor, x: Tensor) -> list[Tensor]:
        with PortableFunctions(seed, only_random=True):
            return [F.dropout(F.dropout2d(x, 0.25), 0.5)]

    data = written(dropped, torch.tensor(1), torch.rand(7, 2, 3, 3))
    assert names(data).count("random.keep_mask") == 2
    for seed in (0, 5, -3, 2**40 + 7):
        given = (torch.tensor(seed), torch.rand(4, 2, 3, 3))
        torch.testing.assert_close(loaded(data)(*given)[0], dropped(*given)[0], rtol=0, atol=0)


def test_recurrent_layers_with_dropout_stay_native_and_draw_the_mask_of_the_seed() -> None:
    """The same masks as the unrolled form that onnxruntime runs."""
    layer = nn.GRU(3, 4, num_layers=3, dropout=0.5, bidirectional=True).requires_grad_(False)

    def run(native: bool) -> Function:
        def called(seed: Tensor, x: Tensor) -> list[Tensor]:
            with PortableFunctions(seed, only_random=native):
                return list(layer(x.transpose(0, 1)))

        return called

    data = written(run(native=True), torch.tensor(1), torch.rand(7, 5, 3))
    assert names(data).count("aten.gru.input") == 3
    given = (torch.tensor(9), torch.rand(2, 5, 3))
    for found, expected in zip(loaded(data)(*given), run(native=False)(*given), strict=True):
        torch.testing.assert_close(found, expected)


def test_parts_without_gradients_stay_without() -> None:
    def half(x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            fixed = x * 3
        return [(x * fixed + x.detach()).sum()]

    x = torch.rand(4, 2, requires_grad=True)
    (total,) = loaded(written(half, torch.rand(7, 2)))(x)
    (slope,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(slope, 3 * x.detach())
    assert torch.is_grad_enabled()


def test_statistics_of_the_batch_alone() -> None:
    def instance(x: Tensor) -> list[Tensor]:
        return [F.batch_norm(x, None, None, training=True)]

    x = torch.rand(5, 3)
    torch.testing.assert_close(loaded(written(instance, x))(x)[0], instance(x)[0])


def test_small_constants_are_inlined_exactly() -> None:
    table = torch.tensor([0.1, float("inf"), -0.0])
    x = torch.rand(4, 3)
    found = loaded(written(lambda x: [x * table], x))(x)[0]
    torch.testing.assert_close(found, x * table, rtol=0, atol=0)


def test_a_large_constant_is_refused_with_what_to_do() -> None:
    table = torch.zeros(300_000)
    with pytest.raises(CompileError, match=r"a constant of 1200000 bytes .* register_buffer"):
        written(lambda x: [x + table.sum()], torch.rand(4))


class Unusual(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.lgamma(x) + torch.special.i0(x)


def test_unsupported_operators_are_all_named_with_their_place() -> None:
    model = nn.Sequential(nn.Identity(), Unusual())
    step = trace_forward(lambda t: {"y": model(t["x"])}, {"x": torch.rand(4)}, ["x"], model)
    with pytest.raises(CompileError) as caught:
        to_json(step.module, ["x"], ["y"])
    assert "aten.lgamma.default in module '1'" in str(caught.value)
    assert "aten.special_i0" in str(caught.value) or "aten.i0" in str(caught.value)


def test_a_constant_output_is_refused() -> None:
    step = traced(lambda x: [x, x.shape[1]], torch.rand(4, 2))  # type: ignore[list-item]
    with pytest.raises(CompileError, match="output 'metric' is the constant 2"):
        to_json(step.module, ["x"], ["loss", "metric"])


def test_strings_outside_the_words_are_refused() -> None:
    module = traced(lambda x: [F.gelu(x, approximate="tanh")], torch.rand(4)).module
    (node,) = module.graph.find_nodes(op="call_function", target=torch.ops.aten.gelu.default)
    node.kwargs = {"approximate": "cubic"}
    with pytest.raises(CompileError, match="with 'cubic', which no plan can hold"):
        to_json(module, ["x"], ["y"])


def test_names_must_fit_the_trace() -> None:
    module = traced(lambda x: [x + 1], torch.rand(4)).module
    with pytest.raises(ValueError, match="2 and 1 names for a trace of 1 inputs and 1 outputs"):
        to_json(module, ["x", "y"], ["z"])


def test_writes_survive_the_choice_of_outputs() -> None:
    """Neither a write nor a batch norm's statistics is dead because nobody takes its result."""

    def noted(mean: Tensor, variance: Tensor, x: Tensor) -> list[Tensor]:
        mean, variance = mean.clone(), variance.clone()
        ignored: Any = F.batch_norm(x, mean, variance, training=True)
        variance.mul_(2.0)
        return [ignored, mean, variance, x * 2]

    step = traced(noted, torch.zeros(3), torch.ones(3), torch.rand(7, 3)).select(["o1", "o2"])
    values = (torch.zeros(3), torch.ones(3), torch.rand(5, 3))
    found = loaded(to_json(step.module, step.inputs, step.outputs))(*values)
    for value, expected in zip(found, noted(*values)[1:3], strict=True):
        torch.testing.assert_close(value, expected)
