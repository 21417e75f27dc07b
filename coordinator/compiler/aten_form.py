"""Writes a traced step in its torch form: a graph of `headwater.aten` as JSON.

The trace comes from make_fx, with native ATen operators for forward and backward. Three things
happen before it is written: operators that write their arguments become functional ones, so that
the order of a graph carries no meaning; copies, detachments and repetitions that a functional graph
does not need go away; and every operator is held against the allow-list that devices use.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta

from coordinator.compiler.refusals import unsupported
from headwater.aten import (
    MAXIMUM_CONSTANT_BYTES,
    Argument,
    AtenGraph,
    AtenNode,
    Device,
    Reference,
    Symbol,
)
from headwater.aten_json import write_graph
from headwater.aten_operators import ITEM_OPERATOR, OPERATORS, WORDS
from headwater.batch import Array
from headwater.errors import CompileError

aten = torch.ops.aten

_NUMBER_FUNCTIONS: dict[Callable[..., Any], str] = {
    operator.add: "number.add",
    operator.sub: "number.sub",
    operator.mul: "number.mul",
    operator.floordiv: "number.floordiv",
    operator.mod: "number.mod",
    operator.truediv: "number.truediv",
    operator.neg: "number.neg",
    torch.sym_min: "number.minimum",
    torch.sym_max: "number.maximum",
    torch.sym_int: "number.int",
    torch.sym_float: "number.float",
    operator.getitem: ITEM_OPERATOR,
}
if hasattr(torch, "sym_sum"):  # since torch 2.6
    _NUMBER_FUNCTIONS[torch.sym_sum] = "number.sum"

_IDENTITIES = frozenset({aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default})
_SYMBOL_KINDS = {
    torch.dtype: "dtype",
    torch.memory_format: "memory_format",
    torch.layout: "layout",
}


def to_json(
    graph_module: fx.GraphModule, input_names: Sequence[str], output_names: Sequence[str]
) -> bytes:
    """The torch form of a step, the same bytes for the same trace.

    `graph_module` is left as it is. `input_names` name its placeholders and `output_names` the
    flat list that it returns, in order.

    Raises:
        CompileError: the trace calls an operator outside the allow-list or holds a large constant.
    """
    module = functional(graph_module)
    _drop_identities(module.graph)
    _merge_equal_calls(module.graph)
    module.graph.eliminate_dead_code()
    _refuse_unsupported(module.graph)
    return write_graph(_Writer(module).graph(tuple(input_names), tuple(output_names)))


def functional(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a trace in which no operator writes its arguments; module paths are kept.

    `graph_module` comes from make_fx: its placeholders carry fake tensors in `meta["val"]`.

    Raises:
        CompileError: torch cannot express a write without writing.
    """
    copied = fx.GraphModule(graph_module, copy.deepcopy(graph_module.graph))
    if not any(_writes(node) for node in copied.graph.nodes):
        return copied
    _rewrite_batch_norm(copied.graph)
    values = [node.meta["val"] for node in copied.graph.find_nodes(op="placeholder")]
    mode = next((v.fake_mode for v in values if isinstance(v, FakeTensor)), FakeTensorMode())
    interpreter = fx.Interpreter(copied, garbage_collect_values=False)

    def run(*tensors: torch.Tensor) -> Any:
        return interpreter.run(*tensors, enable_io_processing=False)

    try:
        with mode, preserve_node_meta():
            return make_fx(
                torch.func.functionalize(run, remove="mutations"),
                tracing_mode="real",
                _allow_non_fake_inputs=True,
            )(*values)
    except RuntimeError as error:
        writing = sorted({str(node.target) for node in copied.graph.nodes if _writes(node)})
        raise CompileError(
            f"the training step writes tensors in place ({', '.join(writing)}) in a way that torch "
            "cannot turn around: use the forms without a trailing underscore"
        ) from error


def _writes(node: fx.Node) -> bool:
    """`native_batch_norm` writes too, though its schema does not say so."""
    return isinstance(node.target, OpOverload) and (
        node.target._schema.is_mutable or node.target is aten.native_batch_norm.default
    )


def _rewrite_batch_norm(graph: fx.Graph) -> None:
    """Let each batch norm return its new running statistics instead of writing them."""
    for node in graph.find_nodes(op="call_function", target=aten.native_batch_norm.default):
        features, weight, bias, mean, variance, training, momentum, epsilon = node.args
        if not training:
            node.target = aten._native_batch_norm_legit_no_training.default
            node.args = (features, weight, bias, mean, variance, momentum, epsilon)
        elif mean is None:
            node.target = aten._native_batch_norm_legit.no_stats
            node.args = (features, weight, bias, training, momentum, epsilon)
        else:
            node.target = aten._native_batch_norm_legit_functional.default
            _use_new_statistics(graph, node, (mean, variance))


def _use_new_statistics(
    graph: fx.Graph, norm: fx.Node, statistics: tuple[fx.node.Argument, ...]
) -> None:
    order = {node: position for position, node in enumerate(graph.nodes)}
    for index, old in enumerate(statistics):
        if not isinstance(old, fx.Node):
            raise CompileError(
                "a batch norm keeps its running statistics outside the model's state"
            )
        with graph.inserting_after(norm):
            new = graph.call_function(operator.getitem, (norm, 3 + index))
        old.replace_all_uses_with(
            new, delete_user_cb=lambda user: order.get(user, -1) > order[norm]
        )


def _drop_identities(graph: fx.Graph) -> None:
    """In a functional graph without autograd a detached tensor or a copy of an input is itself."""
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            continue
        copies_input = node.target is aten.clone.default and source.op == "placeholder"
        if node.target in _IDENTITIES or (copies_input and not node.kwargs):
            node.replace_all_uses_with(source)
        elif node.target is aten.fill.Scalar and source.target is aten.empty_like.default:
            with graph.inserting_before(node):
                value = graph.call_function(
                    aten.full_like.default, (source.args[0], node.args[1]), source.kwargs
                )
            node.replace_all_uses_with(value)
        elif node.target is aten.t.default and source.target is aten.t.default:
            node.replace_all_uses_with(source.all_input_nodes[0])


def _merge_equal_calls(graph: fx.Graph) -> None:
    """Compute once what a trace computes again, such as Adam's bias correction per parameter."""
    calls: dict[tuple[Any, str], fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            # by text, in which 1, 1.0 and True differ and a node is its unique name
            first = calls.setdefault(
                (node.target, f"{node.args} {sorted(node.kwargs.items())}"), node
            )
            if first is not node:
                node.replace_all_uses_with(first)


def _refuse_unsupported(graph: fx.Graph) -> None:
    wrong = [
        node
        for node in graph.nodes
        if node.op not in ("placeholder", "get_attr", "output")
        and _operator_name(node) not in OPERATORS
    ]
    if wrong:
        raise unsupported(wrong)


def _operator_name(node: fx.Node) -> str:
    if isinstance(node.target, OpOverload):
        return str(node.target)
    return _NUMBER_FUNCTIONS.get(node.target, f"{node.op} {node.target}")  # type: ignore[arg-type]


class _Writer:
    """Numbers the values of one trace and turns its nodes into the torch-free form."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        nodes = list(module.graph.nodes)
        self._inputs = [node for node in nodes if node.op == "placeholder"]
        self._constants = [node for node in nodes if node.op == "get_attr"]
        self._calls = [node for node in nodes if node.op == "call_function"]
        numbered = self._inputs + self._constants + self._calls
        self._numbers = {node: number for number, node in enumerate(numbered)}

    def graph(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> AtenGraph:
        results = self._module.graph.output_node().args[0]
        if not isinstance(results, list | tuple):
            results = (results,)
        if len(inputs) != len(self._inputs) or len(outputs) != len(results):
            raise ValueError(
                f"{len(inputs)} and {len(outputs)} names for a trace of {len(self._inputs)} inputs "
                f"and {len(results)} outputs"
            )
        named = zip(outputs, results, strict=True)
        return AtenGraph(
            inputs,
            tuple(self._constant(node) for node in self._constants),
            tuple(self._call(node) for node in self._calls),
            tuple((name, self._output(name, value)) for name, value in named),
        )

    def _constant(self, node: fx.Node) -> Array:
        tensor = operator.attrgetter(str(node.target))(self._module)
        if isinstance(tensor, FakeTensor):
            tensor = tensor.constant
        if not isinstance(tensor, torch.Tensor):
            raise CompileError(
                "the model makes a tensor while it is traced whose values are not known: "
                "create it in __init__ and keep it with register_buffer"
            )
        size_bytes = tensor.numel() * tensor.element_size()
        if size_bytes > MAXIMUM_CONSTANT_BYTES:
            raise CompileError(
                f"the step holds a constant of {size_bytes} bytes (shape {tuple(tensor.shape)}); "
                f"at most {MAXIMUM_CONSTANT_BYTES} may lie in a graph: keep it with register_buffer"
            )
        array: Array = tensor.detach().cpu().numpy()
        return array

    def _call(self, node: fx.Node) -> AtenNode:
        where = _operator_name(node)
        return AtenNode(
            where,
            tuple(self._argument(value, where) for value in node.args),
            {name: self._argument(value, where) for name, value in node.kwargs.items()},
        )

    def _argument(self, value: Any, where: str) -> Argument:
        if isinstance(value, fx.Node):
            return Reference(self._numbers[value])
        if isinstance(value, list | tuple):
            return tuple(self._argument(item, where) for item in value)
        if isinstance(value, torch.device):
            return Device()
        kind = _SYMBOL_KINDS.get(type(value))
        if kind is not None:
            return Symbol(kind, str(value).removeprefix("torch."))
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str) and value in WORDS:
            return value
        raise CompileError(
            f"the training step calls {where} with {value!r}, which no plan can hold"
        )

    def _output(self, name: str, value: Any) -> Reference:
        if not isinstance(value, fx.Node):
            raise CompileError(
                f"the step's output {name!r} is the constant {value!r}, not a tensor: it does not "
                "depend on the model"
            )
        return Reference(self._numbers[value])
