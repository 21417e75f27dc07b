"""Builds an ONNX graph node by node: equal nodes are made once, constants are shared.

Only the default operator domain is used. Names are counted, so the same calls give the same bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from headwater.batch import Array

OPSET = 20
"""Read by onnxruntime 1.17 and later."""

IR_VERSION = 9
PRODUCER = "headwater"

NUMPY_OF_TORCH: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype("float32"), torch.float64: np.dtype("float64"),
    torch.int64: np.dtype("int64"), torch.int32: np.dtype("int32"), torch.int16: np.dtype("int16"),
    torch.int8: np.dtype("int8"), torch.uint8: np.dtype("uint8"), torch.bool: np.dtype("bool"),
}  # fmt: skip


def element_type(dtype: torch.dtype) -> int:
    """ONNX's number for a torch dtype."""
    return int(helper.np_dtype_to_tensor_dtype(NUMPY_OF_TORCH[dtype]))


class GraphBuilder:
    """Nodes in order, each value named once.

    A `prefix` keeps the names of a graph inside another apart from those around it.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[onnx.TensorProto] = []
        self._known: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._count = 0

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, or find the equal one; absent inputs are empty strings."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> tuple[str, ...]:
        """Add a node with several outputs."""
        key = (kind, outputs, inputs, repr(sorted(attributes.items())))
        if key not in self._known:
            names = tuple(self.name() for _ in range(outputs))
            self._nodes.append(helper.make_node(kind, inputs, names, **attributes))
            self._known[key] = names
        return self._known[key]

    def constant(self, value: Array) -> str:
        """A constant tensor."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = self._constants[key] = self.name("c")
            self._initializers.append(numpy_helper.from_array(value, name))
        return self._constants[key]

    def scalar(self, value: float | bool, dtype: torch.dtype) -> str:
        """A constant of rank 0; an integer beyond the dtype wraps around, as in torch."""
        kind = np.dtype(NUMPY_OF_TORCH[dtype])
        whole = isinstance(value, int) and kind.kind in "iu"
        return self.constant(np.array(value, np.int64 if whole else kind).astype(kind))

    def integers(self, values: Sequence[int]) -> str:
        """A constant int64 vector: shapes, axes, offsets."""
        return self.constant(np.array(values, np.int64))

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[tuple[str, onnx.ValueInfoProto]],
    ) -> onnx.ModelProto:
        """The finished graph in a file; `outputs` pairs a value with how it is called outside."""
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(
            self.graph(name, inputs, outputs),
            opset_imports=opset, ir_version=IR_VERSION, producer_name=PRODUCER,
        )  # fmt: skip

    def graph(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[tuple[str, onnx.ValueInfoProto]],
    ) -> onnx.GraphProto:
        """The finished graph, for a file or for a node such as Scan; without what nothing reads."""
        nodes, read = self._needed([value for value, _ in outputs])
        taken: dict[str, str] = {}
        produced = {output for node in nodes for output in node.output}
        for value, info in outputs:
            if value in produced and value not in taken:
                taken[value] = info.name
            else:
                nodes.append(helper.make_node("Identity", [value], [info.name]))
        for node in nodes:
            _rename(node, taken)
        constants = [constant for constant in self._initializers if constant.name in read]
        return helper.make_graph(
            nodes, name, list(inputs), [info for _, info in outputs], constants
        )

    def _needed(self, results: Sequence[str]) -> tuple[list[onnx.NodeProto], set[str]]:
        """The nodes that lead to `results`, in order, and all values that are read.

        onnxruntime would run the others: a translation may look through a node that was made, as a
        matrix product does through a transposition.
        """
        read, kept = set(results), []
        for node in reversed(self._nodes):
            if not read.isdisjoint(node.output):
                kept.append(node)
                read.update(_values_read(node))
        return kept[::-1], read

    def within(self) -> "GraphBuilder":
        """A builder for a graph inside of this one, which may read this one's values."""
        return GraphBuilder(self.name("b") + ".")

    def name(self, kind: str = "v") -> str:
        """A name that no other value has."""
        self._count += 1
        return f"{self._prefix}{kind}{self._count}"


def _values_read(node: onnx.NodeProto) -> Iterator[str]:
    """By a node and by the graphs inside of it."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _values_read(inner)
        yield from (output.name for output in attribute.g.output)


def _rename(node: onnx.NodeProto, taken: Mapping[str, str]) -> None:
    """In the graphs inside of a node too, which read values from outside by name."""
    node.input[:] = [taken.get(value, value) for value in node.input]
    node.output[:] = [taken.get(value, value) for value in node.output]
    for attribute in node.attribute:
        for inner in attribute.g.node:
            _rename(inner, taken)
