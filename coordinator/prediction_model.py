"""A plan's prediction as a plain ONNX model: weights inside, the author's names outside.

What devices run takes its weights as inputs. For use elsewhere they become constants of the file,
beside the arithmetic that the plan does before the model (normalization of images), so that stock
onnxruntime needs the one file. Written through our own view of the format: the onnx package is not
needed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from headwater.batch import Array, TensorSignature
from headwater.errors import PlanError, UsageError
from headwater.graph.onnx_view_pb2 import (
    EntryView,
    GraphView,
    ModelView,
    NodeView,
    TensorView,
    ValueView,
)
from headwater.plan import Plan
from headwater.plan_checks import check_graph

PREDICT = "predict.onnx"
OUTPUT = "output"

MAXIMUM_BYTES = 2**31 - 2**20
"""What protobuf can hold is 2 GiB; ONNX files beyond it would need a second file."""

_ELEMENT_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "int16": 5, "int32": 6, "int64": 7, "bool": 9,
}  # fmt: skip
"""ONNX's numbers (TensorProto.DataType)."""


@dataclass(frozen=True)
class Origin:
    """The version that a file is made of."""

    job: str
    version: int


def prediction_model(plan: Plan, tensors: Mapping[str, Array], origin: Origin) -> bytes:
    """An ONNX file that takes the model's inputs by name and gives `output`.

    `tensors` are the model's, by name. Metadata: `headwater.job`, `headwater.version`,
    `headwater.plan` (digest), and as JSON `headwater.inputs` (how each is made from stored values)
    and, where the job names classes, `headwater.labels`.

    Raises:
        PlanError: the plan's graph is not one that devices would take, or lacks a tensor.
        UsageError: the file would have 2 GiB or more.
    """
    size_bytes = sum(array.nbytes for array in tensors.values())
    if size_bytes > MAXIMUM_BYTES:
        raise UsageError(
            f"the weights have {size_bytes / 2**30:.1f} GiB; an ONNX file holds at most 2 GiB: "
            "use --format safetensors or torch"
        )
    data = plan.read(PREDICT)
    check_graph(data, PREDICT)
    model = ModelView.FromString(data)
    constants = {f"{kind}.{name}": array for name, array in tensors.items() for kind in "pf"}
    inputs = {f"x{index}": one for index, one in enumerate(plan.manifest.inputs)}
    _fill_in(model.graph, constants, inputs)
    model.metadata_props.extend(
        EntryView(key=f"headwater.{key}", value=value)
        for key, value in _metadata(plan, origin).items()
    )
    return model.SerializeToString(deterministic=True)


def _fill_in(
    graph: GraphView, constants: Mapping[str, Array], inputs: Mapping[str, TensorSignature]
) -> None:
    """Turn inputs into constants, and give the others the names that the author knows."""
    taken = {*_names(graph), *inputs}
    kept, renamed = [], []
    for value in graph.input:
        if value.name in constants:
            graph.initializer.append(_constant(value.name, constants[value.name]))
        elif value.name in inputs:
            name = _free(inputs[value.name].name, taken)
            renamed.append(NodeView(op_type="Identity", input=[name], output=[value.name]))
            kept.append(_called(value, name))
        else:
            raise PlanError(
                f"{PREDICT} of the plan wants {value.name!r:.80}, which is neither a tensor of the "
                "model nor an input: compile the plan again"
            )
    nodes = [*renamed, *graph.node]
    del graph.input[:], graph.node[:]
    graph.input.extend(kept)
    graph.node.extend(nodes)


def _names(graph: GraphView) -> Iterator[str]:
    """Every value that is named in a graph and those within it."""
    yield from (one.name for one in graph.initializer)
    for node in graph.node:
        yield from node.output
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from (one.name for one in inner.input)
                yield from _names(inner)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _called(value: ValueView, name: str) -> ValueView:
    renamed = ValueView()
    renamed.CopyFrom(value)  # with its type, which the view carries along
    renamed.name = name
    return renamed


def _constant(name: str, array: Array) -> TensorView:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return TensorView(
        name=name,
        dims=array.shape,
        data_type=_ELEMENT_TYPES[array.dtype.name],
        raw_data=little.tobytes(),
    )


def _metadata(plan: Plan, origin: Origin) -> dict[str, str]:
    manifest = plan.manifest
    found = {
        "job": origin.job,
        "version": str(origin.version),
        "plan": plan.digest,
        "inputs": json.dumps([asdict(one) for one in manifest.inputs]),
    }
    labels = next((one.labels for one in manifest.targets if one.labels), ())
    return found | ({"labels": json.dumps(labels)} if labels else {})
