"""A forward-only ONNX file becomes a torch module by a converter, and a plan from there."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from coordinator.compiler.compile import compile_plan
from headwater.batch import TensorSignature

converter = pytest.importorskip(
    "onnx2torch",
    reason="onnx2torch does not import here: it needs a torchvision of this torch",
    exc_type=ImportError,
)


def test_an_onnx_file_trains(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    shapes = {"kernel": (4, 1, 3, 3), "shift": (4,), "weight": (10, 36), "bias": (10,)}
    weights = [
        numpy_helper.from_array(draw.standard_normal(shape).astype(np.float32) / 10, name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "shift"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "weight", "bias"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "forward",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])], weights,
    )  # fmt: skip
    path = tmp_path / "forward.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)
    manifest = compile_plan(
        converter.convert(str(path)), "cross_entropy", ["accuracy"],
        {"name": "sgd", "learning_rate": 0.1}, [TensorSignature("x", (1, 8, 8), "float32")],
        [TensorSignature("label", (), "int64")], name="onnx", batch_size=8, seed=1,
    ).manifest  # fmt: skip
    assert manifest.layout.trainable_count == sum(np.prod(shape) for shape in shapes.values())
