"""Loads the torch form of a step into an FX module, running nothing that the file says.

The file is data (`headwater.aten`), already held against the allow-list. What it cannot do here:
name a Python attribute (an operator is looked up only after its full name was found in the literal
set), choose an identifier of the generated code (values are `v0`, `v1`, …; keywords must be
arguments of the operator's schema), or build numbers without bound (arithmetic on sizes stays
within 64 bits). What remains is torch's own kernels, called with shapes that a plan chooses: a
hostile plan can still ask for more memory or time than the device has.
"""

import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from edge_client.trainers.torch_keep_mask import keep_mask
from headwater.aten import AtenGraph
from headwater.aten_nodes import Argument, AtenNode, Device, Reference, Symbol
from headwater.aten_operators import (
    ATEN_OPERATORS,
    COPY_OPERATOR,
    GRADIENT_OPERATOR,
    IN_PLACE_OPERATORS,
    ITEM_OPERATOR,
    MASK_OPERATOR,
)
from headwater.errors import PlanError

_LARGEST = 2**63

Number = int | float


def load_graph(
    graph: AtenGraph, device: torch.device, lent: Collection[str] = ()
) -> fx.GraphModule:
    """A module that takes the graph's inputs in order and returns the tuple of its outputs.

    Factories and conversions in it make their tensors on `device`. A graph writes no input but
    copies it first; of the inputs in `lent` it writes what it is given instead.

    Raises:
        PlanError: this torch lacks an operator, or a call does not fit the operator's arguments.
    """
    return _Loader(graph, device, lent).module()


class _Loader:
    def __init__(self, graph: AtenGraph, device: torch.device, lent: Collection[str]) -> None:
        self._source = graph
        self._device = device
        self._needless = _needless_copies(graph, lent)
        self._graph = fx.Graph()
        self._values: list[fx.Node] = []

    def module(self) -> fx.GraphModule:
        constants: dict[str, torch.Tensor] = {}
        for _ in self._source.inputs:
            self._add("placeholder", f"v{len(self._values)}")
        for number, array in enumerate(self._source.constants):
            constants[f"c{number}"] = torch.from_numpy(array).to(self._device)
            self._add("get_attr", f"c{number}")
        for index, node in enumerate(self._source.nodes):
            if index in self._needless:
                self._values.append(self._values[self._needless[index]])
            else:
                self._call(node, f"node {index} ({node.operator})")
        self._graph.output(tuple(self._values[place.index] for _, place in self._source.outputs))
        # FX warns of a get_attr that is no module, parameter or buffer: constants are buffers
        root = torch.nn.Module()
        for name, tensor in constants.items():
            root.register_buffer(name, tensor)
        return fx.GraphModule(root, self._graph, class_name="Step")

    def _add(
        self,
        kind: str,
        target: Any,
        arguments: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
    ) -> None:
        name = f"v{len(self._values)}"
        self._values.append(self._graph.create_node(kind, target, arguments, keywords, name=name))

    def _call(self, node: AtenNode, where: str) -> None:
        arguments = [self._argument(value) for value in node.arguments]
        keywords = {name: self._argument(value) for name, value in node.keywords.items()}
        if node.operator in ATEN_OPERATORS:
            overload = _overload(node.operator)
            _check_call(overload, node, where)
            if _makes_on_default_device(overload):
                keywords["device"] = self._device
            self._add("call_function", overload, tuple(arguments), keywords)
            return
        if node.operator == GRADIENT_OPERATOR:
            self._add("call_function", torch._C._set_grad_enabled, tuple(arguments))
        elif node.operator == MASK_OPERATOR:
            self._add("call_function", keep_mask, (*arguments, self._device))
        else:
            _check_number_call(node, where)
            self._add("call_function", _NUMBER_FUNCTIONS[node.operator], tuple(arguments))

    def _argument(self, value: Argument) -> Any:
        match value:
            case tuple():
                return [self._argument(item) for item in value]
            case Reference(index):
                return self._values[index]
            case Symbol():
                return _SYMBOLS[value.kind, value.name]
            case Device():
                return self._device
        return value


def _needless_copies(graph: AtenGraph, lent: Collection[str]) -> dict[int, int]:
    """Nodes that copy a lent input which nothing else reads, each with the input's number."""
    uses = Counter(place.index for _, place in graph.outputs)
    for node in graph.nodes:
        uses.update(_references((*node.arguments, *node.keywords.values())))
    return {
        index: node.arguments[0].index
        for index, node in enumerate(graph.nodes)
        if node.operator == COPY_OPERATOR and len(node.arguments) == 1 and not node.keywords
        and isinstance(node.arguments[0], Reference)
        and node.arguments[0].index < len(graph.inputs)
        and graph.inputs[node.arguments[0].index] in lent
        and uses[node.arguments[0].index] == 1
    }  # fmt: skip


def _references(values: Sequence[Argument]) -> Iterator[int]:
    for value in values:
        if isinstance(value, Reference):
            yield value.index
        elif isinstance(value, tuple):
            yield from _references(value)


_SYMBOLS: dict[tuple[str, str], Any] = {
    **{
        ("dtype", str(dtype).removeprefix("torch.")): dtype
        for dtype in (
            torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
            torch.float16, torch.float32, torch.float64,
        )
    },
    ("memory_format", "contiguous_format"): torch.contiguous_format,
    ("memory_format", "preserve_format"): torch.preserve_format,
    ("memory_format", "channels_last"): torch.channels_last,
    ("layout", "strided"): torch.strided,
}  # fmt: skip


def _overload(name: str) -> OpOverload:
    """The overload of an allowed name; `name` must come from `ATEN_OPERATORS`."""
    _, packet, overload = name.split(".")
    try:
        found = getattr(getattr(torch.ops.aten, packet), overload)
    except AttributeError:
        raise PlanError(
            f"torch {torch.__version__} lacks the operator {name} that this plan uses: install a "
            "newer torch, or use the onnxruntime trainer"
        ) from None
    may_write = name in IN_PLACE_OPERATORS
    if not isinstance(found, OpOverload) or (found._schema.is_mutable and not may_write):
        raise PlanError(f"torch {torch.__version__} has {name} in a form that writes its arguments")
    return found


def _makes_on_default_device(overload: OpOverload) -> bool:
    """Whether a call without a device would make its result on the CPU."""
    takes = overload._schema.arguments
    has_tensor = any(str(argument.type) == "Tensor" for argument in takes)
    return not has_tensor and any(argument.name == "device" for argument in takes)


def _check_call(overload: OpOverload, node: AtenNode, where: str) -> None:
    schema = overload._schema.arguments
    positional = [argument for argument in schema if not argument.kwarg_only]
    if len(node.arguments) > len(positional):
        raise PlanError(f"{where}: {len(node.arguments)} arguments; it takes {len(positional)}")
    given = dict(zip((argument.name for argument in positional), node.arguments, strict=False))
    kinds = {argument.name: str(argument.real_type) for argument in schema}
    for name, value in node.keywords.items():
        if name not in kinds or name in given:
            raise PlanError(f"{where}: the argument {name!r:.40} does not exist or is given twice")
        given[name] = value
    for argument in schema:
        if argument.name not in given and not argument.has_default_value():
            raise PlanError(f"{where}: the argument {argument.name!r} is missing")
    for name, value in given.items():
        if not _fits(value, kinds[name]):
            raise PlanError(f"{where}: the argument {name!r} must be {kinds[name]}")


def _fits(value: Argument, kind: str) -> bool:
    """Whether an argument can be of a schema's type; a reference may be any single value."""
    if kind.startswith("Optional["):
        return value is None or _fits(value, kind[len("Optional[") : -1])
    if kind.startswith("List["):
        inner = kind[len("List[") : -1]
        if isinstance(value, tuple):
            return all(_fits(item, inner) for item in value)
        return inner in ("int", "float") and _fits(value, inner)  # one number for every dimension
    match value:
        case Reference():
            return kind in ("Tensor", "int", "float", "number")
        case Symbol(symbol_kind, _):
            return _KIND_OF_SYMBOL[symbol_kind] == kind
        case Device():
            return kind == "Device"
    return isinstance(value, _PYTHON_TYPES.get(kind, ()))


_KIND_OF_SYMBOL = {"dtype": "ScalarType", "memory_format": "MemoryFormat", "layout": "Layout"}
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "number": (int, float), "bool": (bool,), "str": (str,),
    "Tensor": (int, float),  # torch wraps a number, as in add.Tensor(x, 1)
}  # fmt: skip


def _check_number_call(node: AtenNode, where: str) -> None:
    """Refuse what is no call of a number function or no literal index of a result."""
    if node.keywords or len(node.arguments) != _ARITIES[node.operator]:
        raise PlanError(f"{where}: it takes {_ARITIES[node.operator]} arguments")
    if node.operator == ITEM_OPERATOR:
        results, index = node.arguments
        if not isinstance(results, Reference) or type(index) is not int or index < 0:
            raise PlanError(f"{where}: it takes a value and a literal index")


def _bounded(value: Any) -> Number:
    """Sizes stay within 64 bits, so that arithmetic in a graph cannot grow without end."""
    if isinstance(value, float) or (isinstance(value, int) and -_LARGEST <= value < _LARGEST):
        return value
    raise PlanError("the plan's torch step computes a size of more than 64 bits, or none at all")


def _arithmetic(function: Callable[..., Any]) -> Callable[..., Number]:
    def checked(*values: Any) -> Number:
        return _bounded(function(*map(_bounded, values)))

    return checked


def _total(values: Sequence[Any]) -> Number:
    return _bounded(sum(map(_bounded, values)))


def _item(results: Any, index: int) -> Any:
    if not isinstance(results, list | tuple) or index >= len(results):
        raise PlanError(f"the plan's torch step takes result {index} of an operator without it")
    return results[index]


_NUMBER_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "number.add": _arithmetic(operator.add),
    "number.sub": _arithmetic(operator.sub),
    "number.mul": _arithmetic(operator.mul),
    "number.floordiv": _arithmetic(operator.floordiv),
    "number.mod": _arithmetic(operator.mod),
    "number.truediv": _arithmetic(operator.truediv),
    "number.neg": _arithmetic(operator.neg),
    "number.minimum": _arithmetic(min),
    "number.maximum": _arithmetic(max),
    "number.int": _arithmetic(int),
    "number.float": _arithmetic(float),
    "number.sum": _total,
    ITEM_OPERATOR: _item,
}
_ARITIES = {
    name: 1 if name in ("number.neg", "number.int", "number.float", "number.sum") else 2
    for name in _NUMBER_FUNCTIONS
}
