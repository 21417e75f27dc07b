from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from headwater import plan_checks
from headwater.errors import PlanError
from headwater.graph_runtime import open_session, run_session
from headwater.plan_checks import check_graph, check_memory
from tests.plans import compiled


def model(*nodes: onnx.NodeProto, opset: int = 20, domain: str = "") -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    chosen = nodes or (helper.make_node("Relu", ["x"], ["y"]),)
    graph = helper.make_graph(list(chosen), "g", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)])


def refused(bad: onnx.ModelProto, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_graph(bad.SerializeToString(), "train.onnx")


def test_an_ordinary_graph_passes() -> None:
    check_graph(model().SerializeToString(), "train.onnx")


def test_every_graph_of_the_compiler_passes() -> None:
    for name, data in compiled("resnet").members.items():
        if name.endswith(".onnx"):
            check_graph(data, name)


@pytest.mark.parametrize("kind", ["RandomNormal", "Loop", "If", "Dropout", "Multinomial"])
def test_operators_off_the_list_are_refused(kind: str) -> None:
    refused(model(helper.make_node(kind, ["x"], ["y"])), f"operator '{kind}', which is not on")


def test_other_domains_are_refused() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], domain="com.microsoft")
    refused(model(node), "'Relu' of the domain 'com.microsoft'")
    refused(model(domain="evil"), "operator domain 'evil'")


@pytest.mark.parametrize("opset", [7, 99])
def test_other_operator_sets_are_refused(opset: int) -> None:
    refused(model(opset=opset), f"operator set {opset}; this version of headwater runs 18 to 23")


def test_external_data_is_refused() -> None:
    bad = model()
    tensor = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    bad.graph.initializer.append(tensor)
    refused(bad, "refers to data outside of its file")


def test_external_data_in_a_constant_node_is_refused() -> None:
    tensor = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    refused(model(helper.make_node("Constant", [], ["y"], value=tensor)), "outside of its file")


def test_functions_and_sparse_constants_are_refused() -> None:
    bad = model()
    bad.functions.append(onnx.FunctionProto(name="f", domain="ours"))
    refused(bad, "defines functions of its own")
    bad = model()
    bad.graph.sparse_initializer.append(onnx.SparseTensorProto(dims=[1]))
    refused(bad, "sparse constant")


def normalization(statistics: str) -> onnx.ModelProto:
    mean, variance = helper.make_node("Neg", ["x"], ["m"]), helper.make_node("Abs", ["x"], ["v"])
    node = helper.make_node(
        "BatchNormalization", ["x", "x", "x", *statistics.split()], ["y", "a", "b"],
        training_mode=1, momentum=0.0,
    )  # fmt: skip
    return model(mean, variance, node)


def test_a_normalization_writes_only_over_its_own_values() -> None:
    check_graph(normalization("m v").SerializeToString(), "test")
    for statistics in ("x v", "m x", "v m"):
        refused(normalization(statistics), "writes over statistics which other nodes may read")


def scan(steps: int, *nodes: onnx.NodeProto, clock: int | None = None) -> onnx.ModelProto:
    """A running sum over `steps` rows of x."""
    state, row, tick, total, out = (
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in [
            ("state", TensorProto.FLOAT), ("row", TensorProto.FLOAT), ("tick", TensorProto.UINT8),
            ("total", TensorProto.FLOAT), ("out", TensorProto.FLOAT),
        ]
    )  # fmt: skip
    chosen = nodes or (
        helper.make_node("Add", ["state", "row"], ["total"]),
        helper.make_node("Identity", ["total"], ["out"]),
    )
    body = helper.make_graph(list(chosen), "step", [state, row, tick], [total, out])
    node = helper.make_node(
        "Scan", ["x", "rows", "clock"], ["last", "y"], body=body, num_scan_inputs=2
    )
    found = model(node)
    found.graph.input.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 1]))
    ticks = np.zeros(steps if clock is None else clock, np.uint8)
    found.graph.initializer.append(onnx.numpy_helper.from_array(ticks, "clock"))
    return found


def changed_scan(change: Callable[[onnx.NodeProto], None]) -> onnx.ModelProto:
    found = scan(3)
    change(found.graph.node[0])
    return found


def test_a_scan_with_a_clock_passes() -> None:
    check_graph(scan(3).SerializeToString(), "train.onnx")


def test_a_scan_is_as_long_as_its_clock() -> None:
    """What the check relies on: onnxruntime refuses sequences of unequal length."""
    feeds = {"x": np.zeros(1, np.float32), "rows": np.ones((3, 1), np.float32)}
    for steps, runs in ((3, True), (2, False), (4, False)):
        data = scan(3, clock=steps).SerializeToString()
        session = open_session(data, "train.onnx", threads=1)
        if runs:
            (found,) = run_session(session, ["y"], feeds, "train.onnx")
            np.testing.assert_array_equal(found, [[1], [2], [3]])
        else:
            with pytest.raises(PlanError, match="inconsistent sequence lengths"):
                run_session(session, ["y"], feeds, "train.onnx")


def test_the_steps_of_a_scan_are_bounded() -> None:
    check_graph(scan(1_000_000).SerializeToString(), "train.onnx")
    refused(scan(3_000_000), "more nodes than the limit of 5000000, counting those of a recurrent")


def _axes(node: onnx.NodeProto) -> None:
    node.attribute.append(helper.make_attribute("scan_input_axes", [1, 1]))


def _two_bodies(node: onnx.NodeProto) -> None:
    node.attribute.append(helper.make_attribute("body", scan(1).graph.node[0].attribute[0].g))


def _computed(node: onnx.NodeProto) -> None:
    node.input[-1] = "rows"


def _no_sequences(node: onnx.NodeProto) -> None:
    node.attribute.remove(next(a for a in node.attribute if a.name == "num_scan_inputs"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_axes, "a Scan with settings other than body"),
        (_two_bodies, "a Scan with settings other than body"),
        (_computed, "a Scan whose steps are not those of a constant"),
        (_no_sequences, "a Scan whose steps are not those of a constant"),
    ],
)
def test_a_scan_without_a_known_length_is_refused(
    change: Callable[[onnx.NodeProto], None], message: str
) -> None:
    refused(changed_scan(change), message)


@pytest.mark.parametrize("dims", [[2**40, 0], [0, 2**40]])
def test_a_clock_without_bytes_is_refused(dims: list[int]) -> None:
    """Steps that take no memory: the length of an empty tensor can be anything."""
    bad = scan(3)
    bad.graph.initializer[0].dims[:] = dims
    refused(bad, "a Scan whose steps are not those of a constant")


def test_a_clock_that_can_be_fed_is_refused() -> None:
    bad = scan(3)
    bad.graph.input.append(helper.make_tensor_value_info("clock", TensorProto.UINT8, [3]))
    refused(bad, "a Scan whose steps are not those of a constant")


def test_what_a_scan_holds_is_checked() -> None:
    refused(scan(3, helper.make_node("Loop", ["state"], ["total"])), "operator 'Loop', which is")
    tensor = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    refused(scan(3, helper.make_node("Constant", [], ["y"], value=tensor)), "outside of its file")


def test_a_scan_in_a_scan_is_refused() -> None:
    inner = scan(3)
    node = inner.graph.node[0]
    outer = scan(3, node)
    outer.graph.node[0].attribute[0].g.initializer.append(inner.graph.initializer[0])
    check = scan(3, outer.graph.node[0])
    check.graph.node[0].attribute[0].g.initializer.append(inner.graph.initializer[0])
    refused(check, "nests graphs deeper than the limit of 2")


def test_only_a_scan_holds_a_graph() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], body=model().graph)
    refused(model(node), "a graph inside of operator 'Relu'; only Scan has one")


def test_very_deep_nesting_does_not_exhaust_the_stack() -> None:
    inner = b"\x0a\x04\x22\x02If"
    for _ in range(500):
        attribute = b"\x32" + _length(inner) + inner
        node = b"\x2a" + _length(attribute) + attribute
        inner = b"\x0a" + _length(node) + node
    with pytest.raises(PlanError, match="nests too deeply"):
        check_graph(b"\x3a" + _length(inner) + inner, "train.onnx")


def _length(data: bytes) -> bytes:
    value, found = len(data), b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


@pytest.mark.parametrize(
    ("name", "limit", "message"),
    [
        ("MAXIMUM_GRAPH_BYTES", 10, "bytes; the limit is 10"),
        ("MAXIMUM_NODES", 0, "has more nodes than the limit of 0"),
        ("MAXIMUM_NODE_RUNS", 0, "runs more nodes than the limit of 0"),
    ],
)
def test_sizes_are_bounded(
    monkeypatch: pytest.MonkeyPatch, name: str, limit: int, message: str
) -> None:
    monkeypatch.setattr(plan_checks, name, limit)
    refused(model(), message)


def test_constants_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_checks, "MAXIMUM_CONSTANT_BYTES", 100)
    bad = model()
    bad.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(30, np.float32), "c"))
    refused(bad, "more than the limit of 100 bytes of constants")


@pytest.mark.parametrize("data", [b"", b"not an onnx file", b"\xff" * 50])
def test_what_is_no_graph_is_refused(data: bytes) -> None:
    with pytest.raises(PlanError, match="not an ONNX file"):
        check_graph(data, "train.onnx")


def test_memory_is_compared_with_the_device() -> None:
    manifest = compiled("lenet").manifest
    peak: Callable[[int], int] = manifest.peak_memory_bytes.total
    assert 3 * 16 * 16 * 4 * 8 < peak(8) < 10 * 2**20
    check_memory(manifest, 8, peak(8))
    with pytest.raises(PlanError, match=r"'lenet' with batch size 64 needs about \d+ MiB .* use a"):
        check_memory(manifest, 64, peak(8))


def test_the_format_of_onnxruntime_itself_is_refused() -> None:
    """It would be read as a flatbuffer, and nothing of what was checked would be what runs."""
    polyglot = b"\x08\x09\x12\x03ORT\x4d\x00\x00\x00\x00" + model().SerializeToString()
    assert plan_checks.ModelView.FromString(polyglot).graph.node
    with pytest.raises(PlanError, match="onnxruntime's own format"):
        check_graph(polyglot, "train.onnx")


@pytest.mark.parametrize("field", ["sparse_tensor", "sparse_tensors"])
def test_sparse_constants_in_a_node_are_refused(field: str) -> None:
    node = helper.make_node("Constant", [], ["y"])
    sparse = onnx.SparseTensorProto(dims=[1])
    sparse.values.data_location = TensorProto.EXTERNAL
    sparse.values.external_data.add(key="location", value="/etc/passwd")
    attribute = node.attribute.add(name="sparse_value")
    if field == "sparse_tensor":
        attribute.sparse_tensor.CopyFrom(sparse)
    else:
        attribute.sparse_tensors.append(sparse)
    refused(model(node), "sparse constant")


def test_training_information_is_refused() -> None:
    bad = model()
    bad.training_info.add().algorithm.name = "t"
    refused(bad, "holds training information")


@pytest.mark.parametrize("place", ["initializer", "attribute"])
@pytest.mark.parametrize("dims", [[2**40], [2**31, 2**31], [-1], [3]])
def test_a_constant_must_bring_its_values(place: str, dims: list[int]) -> None:
    tensor = TensorProto(name="c", dims=dims, data_type=TensorProto.FLOAT, raw_data=b"\0\0")
    tensor.int64_data.extend([1, 2, 3])
    bad = model()
    if place == "initializer":
        bad.graph.initializer.append(tensor)
    else:
        bad = model(helper.make_node("Constant", [], ["y"], value=tensor))
    refused(bad, "too few for its values")
