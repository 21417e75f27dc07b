"""Writes a traced step in its torch form: a graph of `headwater.aten` as JSON.

The trace holds the forward pass in operators of the highest level, with what writes in place left
in the order of the program. One thing happens before it is written: an input that the model writes
is copied first. Every operator is held against the allow-list that devices use.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor

from coordinator.compiler.counter_random import KEEP_MASK
from coordinator.compiler.refusals import unsupported
from headwater.aten import MAXIMUM_CONSTANT_BYTES, AtenGraph
from headwater.aten_json import write_graph
from headwater.aten_nodes import Argument, AtenNode, Device, Reference, Symbol
from headwater.aten_operators import (
    GRADIENT_OPERATOR,
    ITEM_OPERATOR,
    MASK_OPERATOR,
    OPERATORS,
    WORDS,
)
from headwater.aten_writes import writes
from headwater.batch import Array
from headwater.errors import CompileError

_FUNCTIONS: dict[Callable[..., Any], str] = {
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
    torch._C._set_grad_enabled: GRADIENT_OPERATOR,
    KEEP_MASK: MASK_OPERATOR,
}
if hasattr(torch, "sym_sum"):  # since torch 2.6
    _FUNCTIONS[torch.sym_sum] = "number.sum"

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
    module = fx.GraphModule(graph_module, copy.deepcopy(graph_module.graph))
    _refuse_unsupported(module.graph)
    _copy_written(module.graph, _Writer(module).written)
    return write_graph(_Writer(module).graph(tuple(input_names), tuple(output_names)))


def _copy_written(graph: fx.Graph, written: Sequence[fx.Node]) -> None:
    """Let the step write a copy of what it is given: batches and weights are not its own."""
    first = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    for source in written:
        users = list(source.users)
        with graph.inserting_before(first):
            copied = graph.call_function(torch.ops.aten.clone.default, (source,))
        for user in users:
            user.replace_input_with(source, copied)


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
    name = _FUNCTIONS.get(node.target)  # type: ignore[arg-type]
    return name or (
        str(node.target) if isinstance(node.target, OpOverload) else f"{node.op} {node.target}"
    )


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

    @property
    def written(self) -> list[fx.Node]:
        """The inputs and constants that the step writes."""
        given = [*self._inputs, *self._constants]
        nodes = [self._call(node) for node in self._calls]
        return [given[value] for value in sorted({value for _, value in writes(len(given), nodes)})]

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
            {
                name: self._argument(value, where)
                for name, value in node.kwargs.items()
                if name != "pin_memory"
            },
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
