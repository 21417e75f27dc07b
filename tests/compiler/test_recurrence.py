"""Recurrent layers as Scans in onnxruntime against torch's own kernels, forward and backward."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from coordinator.compiler.onnx_lowering import lower
from coordinator.compiler.rewrites import PortableFunctions
from coordinator.compiler.trace import trace_forward
from headwater.errors import CompileError
from tests.compiler.lowering import Function, lowered, numbered, through_onnx

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")

BATCH, INPUT, WIDTH = 3, 5, 4

KINDS: dict[str, Callable[..., nn.RNNBase]] = {
    "LSTM": lambda **settings: nn.LSTM(INPUT, WIDTH, **settings),
    "LSTM with projections": lambda **settings: nn.LSTM(INPUT, WIDTH, proj_size=2, **settings),
    "GRU": lambda **settings: nn.GRU(INPUT, WIDTH, **settings),
    "RNN": lambda **settings: nn.RNN(INPUT, WIDTH, **settings),
    "RNN with ReLU": lambda **settings: nn.RNN(INPUT, WIDTH, nonlinearity="relu", **settings),
}
SETTINGS: dict[str, dict[str, object]] = {
    "one layer without biases": {"bias": False},
    "two layers in both directions": {"num_layers": 2, "bidirectional": True},
    "the batch first": {"batch_first": True, "bidirectional": True, "bias": False},
}


def states_of(layer: nn.RNNBase) -> list[Tensor]:
    runs = layer.num_layers * (2 if layer.bidirectional else 1)
    widths = [layer.proj_size or WIDTH, WIDTH][: 2 if layer.mode == "LSTM" else 1]
    return [torch.randn(runs, BATCH, width) for width in widths]


def layer_step(layer: nn.RNNBase, given_states: bool = True) -> Function:
    """Output, final states and the gradients of everything that goes in."""
    names = [name for name, _ in layer.named_parameters()]

    def run(tensors: Mapping[str, Tensor]) -> list[Tensor]:
        features, *rest = tensors.values()
        states, parameters = rest[: -len(names)], rest[-len(names) :]
        state = tuple(states) if len(states) > 1 else states[0]
        inputs = (features, state) if given_states else (features,)
        named = dict(zip(names, parameters, strict=True))
        output, finals = torch.func.functional_call(layer, named, inputs)
        return [output, *(finals if isinstance(finals, tuple) else (finals,))]

    def step(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in tensors.items()}
            results = run(leaves)
            weighted = [
                (value * torch.arange(value.numel()).reshape(value.shape).cos()).sum()
                for value in results
            ]
            found = torch.autograd.grad(
                torch.stack(weighted).sum(), list(leaves.values()), allow_unused=True,
                materialize_grads=True,
            )  # fmt: skip
        outputs = {f"result{i}": value.detach() for i, value in enumerate(results)}
        return outputs | {f"gradient{i}": value for i, value in enumerate(found)}

    return step


def tensors_of(layer: nn.RNNBase, length: int) -> dict[str, Tensor]:
    shape = (BATCH, length, INPUT) if layer.batch_first else (length, BATCH, INPUT)
    parameters = [parameter.detach() for parameter in layer.parameters()]
    return numbered(torch.randn(shape), *states_of(layer), *parameters)


def assert_as_torch(layer: nn.RNNBase, length: int, given_states: bool = True) -> None:
    tensors = tensors_of(layer, length)
    found = through_onnx(layer_step(layer, given_states), tensors)
    for name, wanted in layer_step(layer, given_states)(tensors).items():
        np.testing.assert_allclose(found[name], wanted, 1e-4, 1e-5, err_msg=name)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_and_its_gradients(kind: str, settings: str) -> None:
    torch.manual_seed(1)
    assert_as_torch(KINDS[kind](**SETTINGS[settings]), 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_of_one_step(kind: str) -> None:
    torch.manual_seed(2)
    assert_as_torch(KINDS[kind](), 1)


def test_states_default_to_zero() -> None:
    torch.manual_seed(3)
    assert_as_torch(KINDS["LSTM"](), 3, given_states=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_does_not_grow_with_the_sequence(kind: str) -> None:
    def graph(length: int) -> onnx.GraphProto:
        layer = KINDS[kind](bidirectional=True)
        step = lowered(layer_step(layer), tensors_of(layer, length))
        return lower(step.select(step.outputs), "test").graph

    short, long = graph(5), graph(50)
    assert [node.op_type for node in short.node] == [node.op_type for node in long.node]
    scans = [node.op_type for node in short.node].count("Scan")
    assert scans == 4, "one for each direction, forward and backward"
    # the clock has a byte for each step; some sizes take a byte more where they are written
    assert long.ByteSize() - short.ByteSize() < 50 + 100


def test_evaluation_keeps_nothing_for_a_backward_pass() -> None:
    layer = KINDS["LSTM"]()
    tensors = tensors_of(layer, 3)

    def step(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named = zip(dict(layer.named_parameters()), list(given.values())[3:], strict=True)
        with torch.no_grad():
            return {"y": torch.func.functional_call(layer, dict(named), (given["t0"],))[0]}

    traced = lowered(step, tensors)
    (scan,) = (
        node for node in lower(traced.select(["y"]), "test").graph.node if node.op_type == "Scan"
    )
    assert len(scan.output) == 3, "the two states and the output"


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_layer_that_runs_along_the_batch_is_refused(batch_first: bool) -> None:
    """A matrix is one sequence to torch.nn.LSTM, whose steps would be the examples."""
    layer = nn.LSTM(INPUT, WIDTH, batch_first=batch_first)

    def step(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"y": layer(tensors["x"])[0].detach()}

    shape = (BATCH, INPUT) if batch_first else (BATCH, 2, INPUT)
    with pytest.raises(CompileError, match=r"runs along the batch.* batch_first=True"):
        lowered(step, {"x": torch.randn(shape)}, ["x"])


def packed_step(layer: nn.RNNBase) -> Function:
    """The padded output and the gradient of the sequence, where lengths are an input."""

    def step(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.enable_grad():
            features = tensors["x"].detach().requires_grad_()
            packed = pack_padded_sequence(features, tensors["lengths"], enforce_sorted=False)
            output, lengths = pad_packed_sequence(
                layer(packed)[0], padding_value=7.0, total_length=features.shape[0]
            )
            (gradient,) = torch.autograd.grad((output * output).sum(), features)
        return {"y": output.detach(), "counted": lengths, "gradient": gradient}

    return step


@pytest.mark.parametrize("lengths", [[4, 1, 3], [2, 2, 1]])
@pytest.mark.parametrize("kind", ["LSTM with projections", "GRU", "RNN"])
def test_packed_sequences(kind: str, lengths: list[int]) -> None:
    """Padding is not seen: neither its values nor its number."""
    torch.manual_seed(4)
    layer = KINDS[kind](bidirectional=True)
    tensors = {"x": torch.randn(4, BATCH, INPUT), "lengths": torch.tensor(lengths)}
    found = through_onnx(packed_step(layer), tensors)
    for name, wanted in packed_step(layer)(tensors).items():
        np.testing.assert_allclose(found[name], wanted, 1e-4, 1e-5, err_msg=name)


def test_a_padded_length_that_depends_on_data_is_refused() -> None:
    layer = KINDS["GRU"]()

    def step(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        packed = pack_padded_sequence(tensors["x"], tensors["lengths"], enforce_sorted=False)
        return {"y": pad_packed_sequence(layer(packed)[0])[0].detach()}

    tensors = {"x": torch.randn(4, BATCH, INPUT), "lengths": torch.tensor([4, 1, 3])}
    with pytest.raises(CompileError, match="depends on the data: pass total_length=4"):
        lowered(step, tensors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
def test_the_torch_form_has_torchs_own_operator(kind: str, layers: int) -> None:
    """One call, and one a layer where dropout between them is ours."""
    layer = KINDS[kind](num_layers=layers, dropout=0.5 if layers > 1 else 0.0)
    names = [name for name, _ in layer.named_parameters()]

    def step(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features, *parameters = tensors.values()
        named = dict(zip(names, parameters, strict=True))
        with PortableFunctions(torch.tensor(0), only_random=True):
            output, finals = torch.func.functional_call(layer, named, (features,))
        return {"y": output, "h": finals[0]}

    examples = numbered(torch.randn(40, BATCH, INPUT), *layer.parameters())
    traced = trace_forward(step, examples, [], nn.Module())
    called = [str(node.target) for node in traced.module.graph.nodes if "aten" in str(node.target)]
    kinds = {"RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}
    operator = f"aten.{kinds.get(layer.mode, layer.mode.lower())}.input"
    assert called.count(operator) == layers
    assert not [name for name in called if "headwater" in name or "sigmoid" in name]
    arguments = [examples[name] for name in traced.inputs]
    shapes = [tuple(value.shape) for value in traced.module(*arguments)]
    assert shapes == [tuple(node.meta["val"].shape) for node in traced.results.values()]
