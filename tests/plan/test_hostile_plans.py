"""Plans that lie: each is refused as a plan, never by a crash of another kind."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edge_client.trainers import open_trainer
from headwater.errors import PlanError
from headwater.evaluation import Evaluator
from headwater.manifest import Manifest
from headwater.plan import MANIFEST, Plan, write_plan
from tests.plans import compiled, opened
from tests.zoo import ZOO, batch

Fields = dict[str, Any]


def fields() -> Fields:
    content: Fields = json.loads(compiled("mlp").manifest.to_bytes())
    return content


def refused(content: Fields, message: str = "missing or wrong field") -> None:
    with pytest.raises(PlanError, match=message):
        Manifest.from_bytes(json.dumps(content).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"schema": 1, "name": ' + b"[" * 100_000,
        b'{"schema": ' + b"9" * 100_000 + b"}",
        b"\xff\xfe",
    ],
)
def test_bombs_of_json_are_refused(data: bytes) -> None:
    with pytest.raises(PlanError, match="the plan's manifest"):
        Manifest.from_bytes(data)


@pytest.mark.parametrize(
    "rate", [float("nan"), float("inf"), 10**400, "nan", "1e3", True, None, [1]], ids=repr
)
def test_numbers_must_be_finite_numbers(rate: Any) -> None:
    refused(fields() | {"hyperparameters": {"learning_rate": rate}})
    refused(fields() | {"parity": {"factor": rate}})


@pytest.mark.parametrize(
    "shape",
    [[2**40], [2**20, 2**20], [0, 2**62], [1] * 17, [2**70], "12", {"1": 2}, [1.0]],
    ids=repr,
)
def test_shapes_are_bounded(shape: Any) -> None:
    for part in ("tensors", "inputs", "targets"):
        content = fields()
        content[part][0]["shape"] = shape
        refused(content)


def test_elements_are_bounded_together() -> None:
    content = fields()
    tensor = content["tensors"][0] | {"shape": [2**30], "role": "local"}
    content["tensors"] += [tensor | {"name": f"more{index}"} for index in range(3)]
    refused(content, "more than 2147483648 elements")


@pytest.mark.parametrize("name", ["", "a\x1b[2J", "a\nb", "\ud800", "n" * 513, 7], ids=repr)
def test_names_can_be_printed(name: Any) -> None:
    refused(fields() | {"name": name})
    for part in ("tensors", "inputs"):
        content = fields()
        content[part][0]["name"] = name
        refused(content)


@pytest.mark.parametrize("dtype", ["object", "O", "complex64", "float64", "evil", None, ["int8"]])
def test_dtypes_are_those_of_plans(dtype: Any) -> None:
    for part in ("tensors", "inputs", "targets"):
        content = fields()
        content[part][0]["dtype"] = dtype
        refused(content)


@pytest.mark.parametrize(
    "slot",
    [
        {"name": "momentum", "tensor": "1.weight", "shape": [10**5, 10**4]},
        {"name": "momentum", "tensor": "absent", "shape": [3]},
        {"name": "step", "tensor": None, "shape": [10**9]},
    ],
)
def test_slots_have_the_shapes_of_their_tensors(slot: Fields) -> None:
    """A trainer makes them at once, before any data proves that such a model exists."""
    content = fields()
    content["optimizer"]["slots"].append(slot | {"initial": 0.0})
    refused(content)


def _without_a_tensor(content: Fields) -> None:
    content["optimizer"]["groups"][0]["tensors"].pop()


def _with_a_tensor_twice(content: Fields) -> None:
    content["optimizer"]["groups"].append(content["optimizer"]["groups"][0])


def _with_an_endless_scale(content: Fields) -> None:
    content["optimizer"]["groups"][0]["learning_rate_scale"] = float("inf")


def _with_an_odd_start(content: Fields) -> None:
    content["optimizer"]["slots"][0]["initial"] = float("nan")


def _with_empty_parts(content: Fields) -> None:
    content["step"]["micro_batch_size"] = 0


def _with_odd_corrections(content: Fields) -> None:
    content["step"]["corrections"] = 1


def _with_weighing_inputs(content: Fields) -> None:
    content["inputs"][0]["is_weight"] = True


def _with_weights_of_integers(content: Fields) -> None:
    content["targets"][-1]["is_weight"] = True


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_a_tensor, "do not hold each trainable tensor once"),
        (_with_a_tensor_twice, "do not hold each trainable tensor once"),
        (_with_an_endless_scale, "inf is not a finite number"),
        (_with_an_odd_start, "nan is not a finite number"),
        (_with_empty_parts, "0 where a positive number belongs"),
        (_with_odd_corrections, "1 is not a bool"),
        (_with_weighing_inputs, "a weight and not the last target"),
        (_with_weights_of_integers, "weights are one float32 an example"),
    ],
)
def test_what_a_step_does_is_told_soundly(spoil: Callable[[Fields], None], message: str) -> None:
    content = fields()
    Manifest.from_bytes(json.dumps(content).encode())
    spoil(content)
    refused(content, message)


def test_a_model_without_trainable_tensors_is_refused() -> None:
    refused(fields() | {"tensors": [], "optimizer": {"name": "sgd", "groups": [], "slots": []}})


def plan_with(members: Mapping[str, bytes], **changes: Any) -> Plan:
    """A plan in which some members were replaced and whose digests fit: an insider's."""
    source = compiled("mlp")
    content = fields() | changes
    blobs = {sha256(data).hexdigest(): data for data in source.members.values()}
    for name, data in members.items():
        digest = sha256(data).hexdigest()
        blobs[digest] = data
        content["members"][name] = {"digest": digest, "size_bytes": len(data)}
    return Plan.from_blobs(json.dumps(content).encode(), blobs.__getitem__)


def test_a_graph_that_the_manifest_does_not_describe_is_refused() -> None:
    with pytest.raises(PlanError, match=r"does not describe graph train\.onnx"):
        open_trainer(plan_with({}, graphs={}), "onnxruntime", threads=1)
    with pytest.raises(PlanError, match=r"does not describe graph evaluate\.onnx"):
        Evaluator(plan_with({}, graphs={}), threads=1)


def changed_onnx(member: str, change: Callable[[onnx.ModelProto], None]) -> bytes:
    model = onnx.load_from_string(compiled("mlp").members[member])
    change(model)
    return model.SerializeToString()


def replaced(output: str, value: np.ndarray) -> Callable[[onnx.ModelProto], None]:
    """An output becomes a constant of another shape or dtype."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["gone" if name == output else name for name in node.output]
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, "bad"))
        model.graph.node.append(helper.make_node("Identity", ["bad"], [output]))
        for info in model.graph.output:
            if info.name == output:
                kind = helper.np_dtype_to_tensor_dtype(value.dtype)
                info.CopyFrom(helper.make_tensor_value_info(output, kind, value.shape))

    return change


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("loss", np.zeros(3, np.float32)),
        ("m.accuracy", np.zeros((1, 1), np.float32)),
        ("new.p.1.bias", np.zeros(2, np.float32)),
        ("new.p.1.bias", np.zeros(12, np.float64)),
        ("new.p.1.bias", np.zeros(12, np.int64)),
        ("new.o.momentum.1.bias", np.zeros(1, np.float32)),
    ],
)
def test_a_step_that_gives_other_shapes_is_refused(output: str, value: np.ndarray) -> None:
    plan = plan_with({"train.onnx": changed_onnx("train.onnx", replaced(output, value))})
    trainer = open_trainer(plan, "onnxruntime", threads=1)
    trainer.set_weights(plan.initial_weights())
    with pytest.raises(PlanError, match=r"the plan's step (gives|turns)"):
        trainer.train_step(batch(ZOO["mlp"], 3, 0), {}, 0)
    trainer.weights()


@pytest.mark.parametrize("output", ["loss", "new.p.1.bias", "new.o.momentum.1.bias"])
def test_a_step_without_an_output_is_refused(output: str) -> None:
    content = fields()
    content["graphs"]["train.onnx"]["outputs"].remove(output)

    def remove(model: onnx.ModelProto) -> None:
        kept = [info for info in model.graph.output if info.name != output]
        del model.graph.output[:]
        model.graph.output.extend(kept)

    plan = plan_with({"train.onnx": changed_onnx("train.onnx", remove)}, graphs=content["graphs"])
    with pytest.raises(PlanError, match=f"train.* lacks the output '{output}' or should not"):
        open_trainer(plan, "onnxruntime", threads=1)


@pytest.mark.parametrize("member", ["train.onnx", "evaluate.onnx"])
def test_a_graph_that_ends_early_is_refused(member: str) -> None:
    """A graph that was cut before the plan was made, so that its digest fits."""
    data = compiled("mlp").members[member]
    cuts = {0, 1, len(data) - 1, *range(7, len(data), len(data) // 40)}
    for cut in sorted(cuts):
        with pytest.raises(PlanError):
            open_trainer(plan_with({member: data[:cut]}), "onnxruntime", threads=1)


@pytest.mark.parametrize("member", ["forward.aten.json", "apply.aten.json", "evaluate.aten.json"])
def test_a_torch_graph_that_ends_early_is_refused(member: str) -> None:
    data = compiled("mlp").members[member]
    cuts = {0, 1, len(data) - 1, *range(7, len(data), len(data) // 40)}
    for cut in sorted(cuts):
        with pytest.raises(PlanError):
            open_trainer(plan_with({member: data[:cut]}), "torch", threads=1, device="cpu")


def torch_plan(member: str, change: Callable[[dict[str, Any]], None]) -> Plan:
    """The MLP's plan with one member of the torch form changed."""
    graph = json.loads(compiled("mlp").members[member])
    change(graph)
    return plan_with({member: json.dumps(graph).encode()})


@pytest.mark.parametrize(
    ("member", "output"),
    [
        ("forward.aten.json", "loss"),
        ("evaluate.aten.json", "m.accuracy"),
        ("apply.aten.json", "new.p.0"),
        ("apply.aten.json", "new.o.momentum.0"),
    ],
)
def test_a_torch_step_without_an_output_is_refused(member: str, output: str) -> None:
    def remove(graph: dict[str, Any]) -> None:
        graph["outputs"] = [pair for pair in graph["outputs"] if pair[0] != output]

    with pytest.raises(PlanError, match=f"{member} lacks the output '{output}' or should not"):
        open_trainer(torch_plan(member, remove), "torch", threads=1, device="cpu")


@pytest.mark.parametrize(
    ("member", "output", "node"),
    [
        ("forward.aten.json", "loss", ["number.add", [1, 2], {}]),
        ("forward.aten.json", "loss", ["aten.ones.default", [[3]], {}]),
        ("forward.aten.json", "loss", ["aten.ones.default", [[]], {}]),
        ("forward.aten.json", "m.accuracy", ["aten.ones.default", [[1, 1]], {}]),
        ("apply.aten.json", "new.p.0", ["aten.ones.default", [[2]], {}]),
        (
            "apply.aten.json",
            "new.p.0",
            ["aten.ones.default", [[352]], {"dtype": {"dtype": "int64"}}],
        ),
        ("apply.aten.json", "new.p.0", ["aten.ones.default", [[-1]], {}]),
        ("apply.aten.json", "new.p.0", ["aten.ones.default", [[2**61, 2**61]], {}]),
        ("apply.aten.json", "new.p.0", ["number.truediv", [1, 0], {}]),
        ("apply.aten.json", "new.p.0", ["number.add", [{"dtype": "float32"}, [1]], {}]),
    ],
)
def test_a_torch_step_that_gives_something_else_is_refused(
    member: str, output: str, node: list[Any]
) -> None:
    def replace(graph: dict[str, Any]) -> None:
        last = len(graph["inputs"]) + len(graph["constants"]) + len(graph["nodes"])
        graph["nodes"].append(node)
        graph["outputs"] = [[n, last if n == output else at] for n, at in graph["outputs"]]

    plan = torch_plan(member, replace)
    trainer = open_trainer(plan, "torch", threads=1, device="cpu")
    trainer.set_weights(plan.initial_weights())
    with pytest.raises(PlanError, match="the plan's"):
        trainer.train_step(batch(ZOO["mlp"], 3, 0), {}, 0)


def test_a_torch_step_that_writes_the_batch_is_refused() -> None:
    def write(graph: dict[str, Any]) -> None:
        graph["nodes"].insert(
            0, ["aten.zero_.default", [{"value": graph["inputs"].index("x0")}], {}]
        )

    with pytest.raises(PlanError, match=r"node 0 \(aten\.zero_\.default\) writes value"):
        open_trainer(torch_plan("evaluate.aten.json", write), "torch", threads=1, device="cpu")


def test_a_step_that_turns_gradients_off_is_refused_and_leaves_them_on() -> None:
    def turn_off(graph: dict[str, Any]) -> None:
        given = len(graph["inputs"]) + len(graph["constants"])
        text = json.dumps([graph["nodes"], graph["outputs"]])
        shifted = re.sub(
            r'"value": (\d+)',
            lambda m: f'"value": {int(m[1]) + (int(m[1]) >= given)}',
            text,
        )
        nodes, outputs = json.loads(shifted)
        graph["nodes"] = [["gradient.enabled", [False], {}], *nodes]
        graph["outputs"] = [[name, at + 1] for name, at in outputs]

    plan = torch_plan("forward.aten.json", turn_off)
    trainer = open_trainer(plan, "torch", threads=1, device="cpu")
    trainer.set_weights(plan.initial_weights())
    with pytest.raises(PlanError, match="does not require grad"):
        trainer.train_step(batch(ZOO["mlp"], 3, 0), {}, 0)
    assert torch.is_grad_enabled()


def test_a_string_for_a_loss_is_refused() -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Cast", ["loss"], ["text"], to=TensorProto.STRING))
        for info in model.graph.output:
            if info.name == "m.accuracy":
                info.CopyFrom(helper.make_tensor_value_info("m.accuracy", TensorProto.STRING, []))
        for node in model.graph.node:
            node.output[:] = ["gone" if n == "m.accuracy" else n for n in node.output]
        model.graph.node[-1].output[0] = "m.accuracy"

    plan = plan_with({"evaluate.onnx": changed_onnx("evaluate.onnx", change)})
    trainer = open_trainer(plan, "onnxruntime", threads=1)
    trainer.set_weights(plan.initial_weights())
    with pytest.raises(PlanError, match="not one number"):
        trainer.evaluate_step(batch(ZOO["mlp"], 3, 0))


def asking_for(elements: int, times: int) -> Callable[[onnx.ModelProto], None]:
    """A step that also fills so many tensors of so many float32, all alive at once, and declares
    nothing of it.
    """

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([elements]), "huge"))
        sums = ["loss"]
        for number in range(times):
            name = f"filled{number}"
            graph.node.append(helper.make_node("Reshape", ["gone", "one"], [f"{name}.value"]))
            graph.node.append(helper.make_node("Expand", [f"{name}.value", "huge"], [name]))
            sums.append(name)
        for node in list(graph.node):
            node.output[:] = ["gone" if name == "loss" else name for name in node.output]
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
        graph.node.append(helper.make_node("Concat", sums[1:], ["all"], axis=0))
        graph.node.append(helper.make_node("ReduceMax", ["all"], ["loss"], keepdims=0))

    return change


HUNGRY = """
import resource, sys
from edge_client.memory_limit import SPARE_BYTES, limit_memory
from edge_client.trainers import open_trainer
from headwater.errors import PlanError
from headwater.plan import Plan
from edge_client.fit import generated_batch

plan = Plan.open(sys.argv[1])
trainer = open_trainer(plan, sys.argv[2], threads=1, device="cpu")
trainer.set_weights(plan.initial_weights())
limit_memory(int(sys.argv[3]) - SPARE_BYTES)
try:
    trainer.train_step(generated_batch(plan.manifest, 3), plan.manifest.hyperparameters, 0)
except PlanError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def hungry_onnx(elements: int, times: int) -> dict[str, bytes]:
    return {"train.onnx": changed_onnx("train.onnx", asking_for(elements, times))}


def hungry_torch(elements: int, times: int) -> dict[str, bytes]:
    graph = json.loads(compiled("mlp").members["forward.aten.json"])
    for _ in range(times):
        graph["nodes"].append(["aten.ones.default", [[elements]], {}])
    last = len(graph["inputs"]) + len(graph["constants"]) + len(graph["nodes"])
    graph["outputs"] = [[n, last - 1 if n == "loss" else at] for n, at in graph["outputs"]]
    return {"forward.aten.json": json.dumps(graph).encode()}


@pytest.mark.parametrize(
    ("backend", "members"),
    [
        ("onnxruntime", partial(hungry_onnx, 25 * 10**9, 1)),
        ("onnxruntime", partial(hungry_onnx, 25 * 10**6, 40)),
        ("torch", partial(hungry_torch, 25 * 10**9, 1)),
    ],
    ids=["100 GB in onnxruntime", "4 GB piece by piece", "100 GB in torch"],
)
def test_a_graph_that_asks_for_too_much_memory_is_refused(
    backend: str, members: Callable[[], dict[str, bytes]], tmp_path: Path
) -> None:
    """It declares little and takes what it can: a client that has a limit refuses and lives on."""
    plan, limit = plan_with(members()), 2**30
    read = {name: plan.read(name) for name in plan.manifest.members}
    write_plan(tmp_path / "hungry.plan", plan.manifest, read)
    done = subprocess.run(
        [sys.executable, "-c", HUNGRY, str(tmp_path / "hungry.plan"), backend, str(limit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    message, peak = done.stdout.strip().splitlines()
    assert "memory" in message
    assert int(peak) < 2 * limit


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("plan") / "mlp.plan"
    compiled("mlp").write(path)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.999])
def test_every_truncation_is_refused(whole: bytes, tmp_path: Path, share: float) -> None:
    (tmp_path / "cut.plan").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(PlanError, match="damaged or not a plan"):
        Plan.open(tmp_path / "cut.plan")


def test_damage_anywhere_is_refused_as_a_plan(whole: bytes, tmp_path: Path) -> None:
    draw, path = np.random.default_rng(0), tmp_path / "bad.plan"
    directory = whole.rindex(b"PK\x05\x06") - 1000
    for trial in range(200):
        data = bytearray(whole)
        at = int(draw.integers(directory if trial % 2 else 0, len(whole)))
        data[at] ^= int(draw.integers(1, 256))
        path.write_bytes(data)
        try:
            plan = Plan.open(path)
        except PlanError:
            continue
        assert plan.digest == compiled("mlp").digest  # a time or an attribute: nothing that counts


def test_a_declared_size_beyond_the_file_is_refused(whole: bytes, tmp_path: Path) -> None:
    entry = whole.rindex(b"PK\x01\x02")
    data = bytearray(whole)
    data[entry + 20 : entry + 28] = (2**31).to_bytes(4, "little") * 2
    (tmp_path / "bad.plan").write_bytes(data)
    with pytest.raises(PlanError, match=r"bad\.plan: "):
        Plan.open(tmp_path / "bad.plan")


def test_an_encrypted_file_is_refused(whole: bytes, tmp_path: Path) -> None:
    data = bytearray(whole)
    entry = data.index(b"PK\x01\x02")
    while entry >= 0:
        data[entry + 8] |= 1
        entry = data.find(b"PK\x01\x02", entry + 1)
    (tmp_path / "bad.plan").write_bytes(data)
    with pytest.raises(PlanError, match=r"damaged or not a plan \(.*encrypted"):
        Plan.open(tmp_path / "bad.plan")


@pytest.mark.parametrize(
    "name", ["train.onnx\0.x", "./train.onnx", "CON.onnx", "train.onnx ", "é.x"]
)
def test_tricky_names_are_refused(whole: bytes, tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.plan"
    path.write_bytes(whole)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("placeholder.onnx")
        info.filename = info.orig_filename = name
        archive.writestr(info, b"x")
    with pytest.raises(PlanError, match="without folders"):
        Plan.open(path)


def test_a_large_manifest_in_a_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    with (tmp_path / "plan" / MANIFEST).open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(PlanError, match=f"has more than {16 * 2**20} bytes"):
        Plan.open(tmp_path / "plan")


def test_a_plan_of_our_own_passes() -> None:
    plan = opened(compiled("mlp"))
    assert plan.manifest == compiled("mlp").manifest
