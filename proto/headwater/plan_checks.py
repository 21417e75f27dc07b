"""What a device checks before a plan's graph reaches a runtime.

The graph is read through a minimal view of the ONNX format, without the onnx package. Each limit is
stated here and named in the message of the check that fails.
"""

from collections.abc import Iterator
from math import prod

from google.protobuf.message import DecodeError

from headwater.errors import PlanError
from headwater.graph.onnx_view_pb2 import (
    AttributeView,
    GraphView,
    ModelView,
    NodeView,
    TensorView,
)
from headwater.manifest import Manifest

OPSETS = range(18, 24)
"""Versions of the standard operators that the pinned onnxruntime runs and the compiler may use."""

MAXIMUM_GRAPH_BYTES = 64 * 2**20
MAXIMUM_NODES = 200_000
MAXIMUM_DEPTH = 2
"""A graph and the bodies of its Scans: a Scan in a Scan would multiply their steps."""
MAXIMUM_NODE_RUNS = 5_000_000
"""Nodes that run in one call of a graph, those of a Scan's body once for each of its steps."""
MAXIMUM_CONSTANT_BYTES = 16 * 2**20
"""Constants of one graph together: weights are inputs, so these are masks, axes and shapes."""

_EXTERNAL = 1
_FLATBUFFER_MARK = b"ORTM"
"""At bytes 4 to 8 it makes onnxruntime read another format, in which nothing here was checked."""

OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization
    BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Clip Concat Constant Conv ConvTranspose Cos
    Cosh CumSum Div Equal Erf Exp Expand Floor Gather GatherElements GatherND Gelu Gemm Greater
    GreaterOrEqual HardSigmoid Identity IsInf IsNaN Less LessOrEqual Log LogSoftmax MatMul Max
    MaxPool MaxUnpool Min Mod Mul Neg Not Or Pad Pow Range Reciprocal ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum Relu Reshape Round Scan ScatterElements ScatterND Shape Sigmoid Sign Sin
    Sinh Slice Softmax Split Sqrt Squeeze Sub Tan Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
    """.split()  # noqa: SIM905 - a table reads better as words
)
"""All pure functions of their inputs: nothing draws random numbers or reads a file, and only Scan
repeats anything, as often as its clock says (`_scan_runs`).
"""

_SCAN_SETTINGS = [
    "body", "num_scan_inputs", "scan_input_directions", "scan_output_directions"
]  # fmt: skip


def check_graph(data: bytes, member: str) -> None:
    """Refuse a graph that could harm or that no compiler of ours makes.

    Raises:
        PlanError: names the member, what was found and the limit.
    """
    if len(data) > MAXIMUM_GRAPH_BYTES:
        raise PlanError(f"graph {member} has {len(data)} bytes; the limit is {MAXIMUM_GRAPH_BYTES}")
    if data[4:8] == _FLATBUFFER_MARK:
        raise PlanError(f"graph {member} is in onnxruntime's own format; plans hold ONNX files")
    try:
        model = ModelView.FromString(data)
    except DecodeError as error:
        raise PlanError(
            f"graph {member} is not an ONNX file, is damaged or nests too deeply"
        ) from error
    _check_operator_sets(model, member)
    nodes = runs = constants = 0
    for graph, depth in _graphs(model.graph, 1):
        if depth > MAXIMUM_DEPTH:
            raise PlanError(f"graph {member} nests graphs deeper than the limit of {MAXIMUM_DEPTH}")
        nodes += len(graph.node)
        if nodes > MAXIMUM_NODES:
            raise PlanError(f"graph {member} has more nodes than the limit of {MAXIMUM_NODES}")
        _check_nodes(graph, member)
        _check_statistics(graph, member)
        runs += len(graph.node) + sum(_inner_runs(node, graph, member) for node in graph.node)
        if runs > MAXIMUM_NODE_RUNS:
            raise PlanError(
                f"graph {member} runs more nodes than the limit of {MAXIMUM_NODE_RUNS}, counting "
                "those of a recurrent layer once for each of its steps"
            )
        constants += _checked_constant_bytes(graph, member)
        if constants > MAXIMUM_CONSTANT_BYTES:
            raise PlanError(
                f"graph {member} holds more than the limit of {MAXIMUM_CONSTANT_BYTES} bytes of "
                "constants; weights travel as inputs"
            )
    if not nodes:
        raise PlanError(f"graph {member} has no nodes: it is not an ONNX file, or is damaged")


def check_memory(manifest: Manifest, batch_size: int, memory_bytes: int) -> None:
    """Refuse a step that is estimated to need more memory than a device has.

    Raises:
        PlanError: with both figures.
    """
    needed = manifest.step_memory_bytes(batch_size)
    if needed > memory_bytes:
        raise PlanError(
            f"a step of plan {manifest.name!r} with batch size {batch_size} needs about "
            f"{needed / 2**20:,.0f} MiB of memory; this device has {memory_bytes / 2**20:,.0f} "
            "MiB: use a smaller batch or a larger device"
        )


def _check_operator_sets(model: ModelView, member: str) -> None:
    for operator_set in model.opset_import:
        if operator_set.domain not in ("", "ai.onnx"):
            raise PlanError(
                f"graph {member} uses the operator domain {operator_set.domain!r}; allowed is only "
                "the standard one"
            )
        if operator_set.version not in OPSETS:
            raise PlanError(
                f"graph {member} uses operator set {operator_set.version}; this version of "
                f"headwater runs {OPSETS[0]} to {OPSETS[-1]}: upgrade headwater on this device, or "
                "compile the plan for an older one"
            )
    if not model.opset_import:
        raise PlanError(
            f"graph {member} names no operator set: it is not an ONNX file, or is damaged"
        )
    if model.functions:
        raise PlanError(f"graph {member} defines functions of its own, which plans may not")
    if model.training_info:
        raise PlanError(f"graph {member} holds training information, which plans may not")


def _graphs(graph: GraphView, depth: int) -> Iterator[tuple[GraphView, int]]:
    """The graph and those within its nodes; deeper than the limit only one level is shown."""
    yield graph, depth
    if depth > MAXIMUM_DEPTH:
        return
    for attribute in _attributes(graph):
        inner = [attribute.g] if attribute.HasField("g") else []
        for nested in [*inner, *attribute.graphs]:
            yield from _graphs(nested, depth + 1)


def _check_nodes(graph: GraphView, member: str) -> None:
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise PlanError(
                f"graph {member} uses operator {node.op_type!r} of the domain {node.domain!r}; "
                "allowed is only the standard one"
            )
        if node.op_type not in OPERATORS:
            raise PlanError(
                f"graph {member} uses operator {node.op_type!r}, which is not on the list of "
                "allowed operators: upgrade headwater on this device if a newer one compiled it"
            )


def _check_statistics(graph: GraphView, member: str) -> None:
    """Where a BatchNormalization writes statistics, only its own values may be written over.

    onnxruntime's kernel puts new statistics where the old ones lie: were those an input of the
    graph, a plan could change a device's data.
    """
    kinds = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "BatchNormalization" and len(node.output) > 1:
            sources = [kinds.get(name) for name in node.input[3:]]
            if sources != ["Neg", "Abs"]:
                raise PlanError(
                    f"graph {member} has a BatchNormalization that writes over statistics which "
                    "other nodes may read: they must come from a Neg and an Abs"
                )


def _inner_runs(node: NodeView, graph: GraphView, member: str) -> int:
    """How many nodes run inside of a node: none, unless it is a Scan."""
    if node.op_type == "Scan":
        return _scan_runs(node, graph, member)
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        raise PlanError(
            f"graph {member} holds a graph inside of operator {node.op_type!r}; only Scan has one"
        )
    return 0


def _scan_runs(node: NodeView, graph: GraphView, member: str) -> int:
    """A Scan's steps times its nodes.

    Its last input is a clock: a constant vector with one element for each step. onnxruntime demands
    that all sequences of a Scan are equally long, so no other input can make it run longer, not
    even one that is computed and takes no memory because its other dimensions are zero.
    """
    settings = {attribute.name: attribute for attribute in node.attribute}
    if len(settings) != len(node.attribute) or not set(settings) <= set(_SCAN_SETTINGS):
        raise PlanError(
            f"graph {member} has a Scan with settings other than {', '.join(_SCAN_SETTINGS)}"
        )
    fed = {value.name for value in graph.input}
    clocks = {t.name: t.dims for t in graph.initializer if len(t.dims) == 1 and t.name not in fed}
    scanned = settings["num_scan_inputs"].i if "num_scan_inputs" in settings else 0
    clock = node.input[-1] if 0 < scanned <= len(node.input) else ""
    if clock not in clocks or "body" not in settings:
        raise PlanError(
            f"graph {member} has a Scan whose steps are not those of a constant: its last sequence "
            "must be a constant vector with one element for each step"
        )
    return clocks[clock][0] * len(settings["body"].g.node)


def _checked_constant_bytes(graph: GraphView, member: str) -> int:
    if graph.sparse_initializer or any(map(_is_sparse, _attributes(graph))):
        raise PlanError(f"graph {member} holds a sparse constant, which plans may not")
    size = 0
    for tensor in _tensors(graph):
        if tensor.data_location == _EXTERNAL or tensor.external_data:
            raise PlanError(
                f"graph {member} refers to data outside of its file, which plans may not"
            )
        if min(tensor.dims, default=0) < 0 or prod(tensor.dims) > len(tensor.raw_data):
            raise PlanError(
                f"graph {member} holds a constant of shape {list(tensor.dims)[:8]} with "
                f"{len(tensor.raw_data)} raw bytes: too few for its values"
            )
        size += len(tensor.raw_data)
    return size


def _tensors(graph: GraphView) -> Iterator[TensorView]:
    yield from graph.initializer
    for attribute in _attributes(graph):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def _attributes(graph: GraphView) -> Iterator[AttributeView]:
    for node in graph.node:
        yield from node.attribute


def _is_sparse(attribute: AttributeView) -> bool:
    return attribute.HasField("sparse_tensor") or bool(attribute.sparse_tensors)
