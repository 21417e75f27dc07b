"""Lowers a decomposed step to ONNX, one ATen operator at a time.

The translations are our own and few, rather than those of torch.onnx: that exporter made silently
wrong training graphs (constants below 1e-8 taken for zero, integer division through float32,
unseeded random operators), and took a minute where this takes a second. An operator without a
translation is an error that names it and the module that called it.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, fx
from torch._ops import OpOverload

from coordinator.compiler.onnx_graph import NUMPY_OF_TORCH, GraphBuilder, element_type
from coordinator.compiler.places import place
from coordinator.compiler.refusals import unsupported
from coordinator.compiler.trace import TracedStep, is_fixed
from headwater.errors import CompileError

BATCH = "batch"
MAXIMUM_CONSTANT_BYTES = 2**20

Result = str | tuple[str, ...]
Translation = Callable[..., Result]

_TRANSLATIONS: dict[Any, Translation] = {}


def translates(*names: str) -> Callable[[Translation], Translation]:
    """Registers a function `(context, *arguments in schema order) -> value names`."""

    def register(function: Translation) -> Translation:
        for name in names:
            library, _, rest = name.rpartition("::")
            operator_name, overload = rest.split(".")
            packet = getattr(getattr(torch.ops, library or "aten"), operator_name)
            _TRANSLATIONS[getattr(packet, overload)] = function
        return function

    return register


class Value:
    """An operand: its name in the ONNX graph and what the trace knows about it.

    Symbolic sizes are values too: int64 vectors of one element.
    """

    def __init__(self, name: str, node: fx.Node) -> None:
        self.name = name
        self.node = node

    @property
    def is_size(self) -> bool:
        """Whether this is a symbolic size rather than a tensor."""
        return not isinstance(self.node.meta["val"], Tensor)

    @property
    def size_dtype(self) -> torch.dtype:
        """How a symbolic number is held: fractions of sizes are float64."""
        fraction = isinstance(self.node.meta["val"], float | torch.SymFloat)
        return torch.float64 if fraction else torch.int64

    @property
    def dtype(self) -> torch.dtype:
        """The tensor's dtype."""
        dtype: torch.dtype = self.node.meta["val"].dtype
        return dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        """Sizes: integers, or torch.SymInt where they depend on the batch."""
        return tuple(self.node.meta["val"].shape)

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)


class Context(GraphBuilder):
    """A graph under construction, with what translations ask most often."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.module = module
        self.names: dict[fx.Node, Result] = {}
        self.node: fx.Node = next(iter(module.graph.nodes))
        self.flat_indices: dict[str, str] = {}

    @property
    def result(self) -> Tensor:
        """What the trace knows of the present operator's result, the first if there are more."""
        value = self.node.meta["val"]
        found: Tensor = value[0] if isinstance(value, tuple | list) else value
        return found

    def operand(self, value: Any, dtype: torch.dtype) -> str:
        """A tensor, size or number as a value of `dtype`."""
        if isinstance(value, Value):
            if value.is_size:
                return self.cast(self.op("Squeeze", value.name), value.size_dtype, dtype)
            return self.cast(value.name, value.dtype, dtype)
        return self.scalar(value, dtype)

    def cast(self, name: str, have: torch.dtype, want: torch.dtype) -> str:
        """A conversion where one is needed."""
        return name if have == want else self.op("Cast", name, to=element_type(want))

    def sizes(self, values: Sequence[Any], infer: bool = False) -> str:
        """An int64 vector from integers and symbolic sizes.

        With `infer`, a single symbolic size becomes -1, which Reshape works out by itself.
        """
        symbolic = [value for value in values if not isinstance(value, int)]
        if infer and len(symbolic) == 1 and -1 not in [v for v in values if isinstance(v, int)]:
            return self.integers([v if isinstance(v, int) else -1 for v in values])
        if not symbolic:
            return self.integers(values)
        parts = [v.name if isinstance(v, Value) else self.integers([v]) for v in values]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def reshape(self, name: str, shape: Sequence[Any]) -> str:
        """A reshape to integers and at most one -1."""
        return self.op("Reshape", name, self.integers(list(shape)))

    def unsupported(self, reason: str) -> CompileError:
        """An error about the present operator."""
        return CompileError(f"{self.node.target} {place(self.node)}: {reason}")


def lower(step: TracedStep, name: str) -> onnx.ModelProto:
    """The step as an ONNX model whose inputs and outputs have the step's names.

    Raises:
        CompileError: an operator without a translation, or a form of one.
    """
    from coordinator.compiler import (  # noqa: F401 - each registers its translations
        onnx_indexing,
        onnx_kernels,
        onnx_operators,
        onnx_pooling,
        onnx_recurrence,
        onnx_shapes,
        onnx_sorting,
    )

    context = Context(step.module)
    inputs = []
    for input_name, node in zip(step.inputs, step.placeholders, strict=True):
        context.names[node] = input_name
        inputs.append(_information(input_name, node.meta["val"]))
    sizes = step.open_sizes
    for node in step.module.graph.nodes:
        if node.op in ("call_function", "get_attr"):
            context.node = node
            context.names[node] = _lowered(context, node)
            if any(map(is_fixed, sizes)):
                raise context.unsupported(
                    "it fixes the size of the batch, and a plan runs with any"
                )
    outputs = []
    for output_name, node in step.results.items():
        value = context.names[node]
        if not isinstance(value, str):
            raise AssertionError(f"{output_name} has several values")
        outputs.append((value, _information(output_name, node.meta["val"])))
    return context.model(name, inputs, outputs)


def _lowered(context: Context, node: fx.Node) -> Result:
    if node.op == "get_attr":
        return _constant(context, node)
    if node.target is operator.getitem:
        several = context.names[node.args[0]]  # type: ignore[index]
        return several[node.args[1]]  # type: ignore[index]
    if not isinstance(node.target, OpOverload):
        return _size_arithmetic(context, node)
    translation = _TRANSLATIONS.get(node.target)
    if translation is None:
        raise unsupported([node])
    return translation(context, *_arguments(context, node))


def _arguments(context: Context, node: fx.Node) -> list[Any]:
    """All arguments in the order of the operator's schema, defaults filled in."""
    assert isinstance(node.target, OpOverload)
    given = list(node.args)
    found = []
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(given):
            value = given[position]
        else:
            value = node.kwargs.get(
                argument.name, argument.default_value if argument.has_default_value() else None
            )
        found.append(_operand(context, value))
    return found


def _operand(context: Context, value: Any) -> Any:
    if isinstance(value, fx.Node):
        name = context.names[value]
        return Value(name, value) if isinstance(name, str) else name
    if isinstance(value, list | tuple):
        return [_operand(context, item) for item in value]
    return value


def _constant(context: Context, node: fx.Node) -> str:
    tensor = operator.attrgetter(str(node.target))(context.module)
    node.meta["val"] = tensor
    if tensor.numel() * tensor.element_size() > MAXIMUM_CONSTANT_BYTES:
        raise CompileError(
            f"the model makes a constant of shape {tuple(tensor.shape)} while it runs: keep it "
            "with register_buffer, so that it travels once and not in every graph"
        )
    return context.constant(tensor.detach().numpy().astype(NUMPY_OF_TORCH[tensor.dtype]))


_SIZE_OPERATORS = {
    operator.add: "Add", operator.mul: "Mul", operator.sub: "Sub", operator.floordiv: "Div",
    operator.mod: "Mod", operator.truediv: "Div", operator.neg: "Neg",
}  # fmt: skip


def _size_arithmetic(context: Context, node: fx.Node) -> str:
    """Arithmetic on symbolic sizes, which are never negative (so Div is a floor division)."""
    operands = [_operand(context, value) for value in node.args]
    if node.target is torch.sym_float:
        return context.cast(operands[0].name, operands[0].size_dtype, torch.float64)
    kind = _SIZE_OPERATORS.get(node.target)  # type: ignore[arg-type]
    if kind is None:
        raise context.unsupported("this arithmetic on the batch size is not supported")
    fraction = isinstance(node.meta["val"], float | torch.SymFloat)
    dtype = torch.float64 if fraction else torch.int64
    return context.op(kind, *(_number(context, value, dtype) for value in operands))


def _number(context: Context, value: Any, dtype: torch.dtype) -> str:
    """A symbolic or plain number as a vector of one element."""
    if isinstance(value, Value):
        return context.cast(value.name, value.size_dtype, dtype)
    return context.constant(np.array([value], NUMPY_OF_TORCH[dtype]))


def _information(name: str, value: Tensor) -> onnx.ValueInfoProto:
    if value.dtype not in NUMPY_OF_TORCH:
        raise CompileError(f"{name} has dtype {value.dtype}, which plans do not carry")
    shape = [
        size if isinstance(size, int) else BATCH if str(size.node.expr).isidentifier() else None
        for size in value.shape
    ]
    return helper.make_tensor_value_info(name, element_type(value.dtype), shape)
