"""What only the torch trainer does: devices, errors in our words, silence, no sharing of memory."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from edge_client.trainers import open_trainer
from edge_client.trainers.onnx_trainer import OnnxTrainer
from edge_client.trainers.torch_aten import load_graph
from edge_client.trainers.torch_trainer import APPLY, EVALUATE, FORWARD, TorchTrainer
from headwater.aten import AtenGraph
from headwater.aten_json import read_graph, write_graph
from headwater.aten_nodes import AtenNode, Reference
from headwater.batch import Batch
from headwater.errors import DataError, MissingExtraError, PlanError, UsageError
from headwater.plan import Plan
from headwater.values import batch_values, forward_outputs, state_values
from tests.plans import compile_case, opened
from tests.zoo import ZOO, batch

PlanOf = Callable[[str], Plan]


def trainer_of(plan: Plan, **options: Any) -> TorchTrainer:
    trainer = TorchTrainer(plan, **{"threads": 1, "device": "cpu", **options})
    trainer.set_weights(plan.initial_weights())
    return trainer


class ChangedPlan(Plan):
    """A plan whose torch step is another graph."""

    def __init__(self, plan: Plan, graph: AtenGraph) -> None:
        super().__init__(plan.manifest_bytes, plan.read)
        self._graph = graph

    def read(self, member: str) -> bytes:
        return write_graph(self._graph) if member == FORWARD else super().read(member)


def changed(plan: Plan, *nodes: AtenNode, inputs: tuple[str, ...] = ("x0",)) -> Plan:
    last = Reference(len(inputs) + len(nodes) - 1)
    outputs = tuple((name, last) for name in sorted(forward_outputs(plan.manifest)))
    return ChangedPlan(plan, AtenGraph(inputs, (), nodes, outputs))


def test_auto_takes_a_gpu_where_there_is_one(plan_of: PlanOf) -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert trainer_of(plan_of("mlp"), device="auto").device.type == expected


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_named(plan_of: PlanOf, device: str) -> None:
    with pytest.raises(UsageError, match=f"device '{device}' cannot be used .* choose auto, cpu"):
        trainer_of(plan_of("mlp"), device=device)


def test_without_torch_one_line_names_the_extra(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("mlp")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'headwater\[torch\]'") as caught:
        open_trainer(plan, "torch", threads=1)
    assert "\n" not in str(caught.value)


def test_threads_are_capped(plan_of: PlanOf) -> None:
    before = torch.get_num_threads()
    try:
        trainer_of(plan_of("mlp"), threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ZOO)
def test_no_tensor_is_left_behind_on_the_cpu(plan_of: PlanOf, name: str) -> None:
    """The meta device stands in for a GPU: it refuses operands of two devices like one."""
    plan = plan_of(name)
    arrays = state_values(plan, plan.initial_weights()) | batch_values(batch(ZOO[name], 3, 0))
    arrays |= {"h.learning_rate": np.float32(0.1), "seed": np.int64(1), "o.step": np.float32(0)}  # type: ignore[dict-item]
    for member in (FORWARD, APPLY, EVALUATE):
        graph = read_graph(plan.read(member))
        step = load_graph(graph, torch.device("meta"))
        vector = np.zeros(5, np.float32)
        values = (torch.from_numpy(np.array(arrays.get(name, vector))) for name in graph.inputs)
        results = step(*(value.to("meta") for value in values))
        assert {result.device.type for result in results} == {"meta"}


def test_neither_batches_nor_weights_share_memory_with_the_trainer(plan_of: PlanOf) -> None:
    plan = plan_of("resnet")
    given = plan.initial_weights()
    trainer = TorchTrainer(plan, threads=1, device="cpu")
    trainer.set_weights(given)
    trainer.train_step(batch(ZOO["resnet"], 4, 0), {}, 0)
    after = trainer.weights()
    np.testing.assert_array_equal(given.floats, plan.initial_weights().floats)
    np.testing.assert_array_equal(given.integers, plan.initial_weights().integers)
    after.floats[:] = 0
    state = trainer.optimizer_state()
    for slot in state.values():
        slot[...] = 7
    assert trainer.weights().floats.any()
    assert not any((slot == 7).all() for slot in trainer.optimizer_state().values())


def test_read_only_and_strided_batches_are_taken(plan_of: PlanOf) -> None:
    plain = batch(ZOO["lenet"], 4, 0)
    odd = Batch(
        tuple(np.asfortranarray(array) for array in plain.inputs),
        tuple(np.repeat(array, 2)[::2] for array in plain.targets),
    )
    for array in (*odd.inputs, *odd.targets):
        array.flags.writeable = False
    trainer = trainer_of(plan_of("lenet"))
    assert trainer.evaluate_step(odd) == trainer.evaluate_step(plain)


def test_an_input_that_the_manifest_lacks_is_named(plan_of: PlanOf) -> None:
    plan = changed(
        plan_of("mlp"), AtenNode("aten.sum.default", (Reference(0),)), inputs=("p.secret",)
    )
    with pytest.raises(PlanError, match=r"asks for 'p\.secret'"):
        trainer_of(plan).train_step(batch(ZOO["mlp"], 2, 0), {}, 0)


def test_a_step_that_torch_cannot_run_fails_in_our_words(plan_of: PlanOf) -> None:
    plan = changed(plan_of("mlp"), AtenNode("aten.view.default", (Reference(0), (7, 13))))
    with pytest.raises(PlanError, match=r"the plan's torch step failed in torch .*: .*shape"):
        trainer_of(plan).train_step(batch(ZOO["mlp"], 2, 0), {}, 0)


def test_a_step_that_wants_too_much_memory_fails_in_our_words(plan_of: PlanOf) -> None:
    plan = changed(plan_of("mlp"), AtenNode("aten.ones.default", ((2**40, 2**20),)))
    with pytest.raises(PlanError, match=r"the plan's torch step failed|does not fit this device"):
        trainer_of(plan).train_step(batch(ZOO["mlp"], 2, 0), {}, 0)


def test_a_value_beyond_an_embedding_is_a_data_error(plan_of: PlanOf) -> None:
    """Where the plan declares no maximum, torch itself finds the value."""
    plan = plan_of("gru")
    targets = tuple(dataclasses.replace(target, maximum=None) for target in plan.manifest.targets)
    manifest = dataclasses.replace(plan.manifest, targets=targets)
    wrong = batch(ZOO["gru"], 2, 0)
    wrong.targets[0][...] = 400
    with pytest.raises(DataError, match="a value of the batch is out of range"):
        trainer_of(Plan(manifest.to_bytes(), plan.read)).train_step(wrong, {}, 0)


def test_whole_vectors_and_their_parts_are_updated_alike(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, examples = plan_of("transformer"), batch(ZOO["transformer"], 4, 0)
    assert read_graph(plan.read(APPLY)).is_pointwise
    found = []
    for elements in (2**20, 100):
        monkeypatch.setattr("edge_client.trainers.torch_trainer._PART_ELEMENTS", elements)
        trainer = trainer_of(plan)
        for step in range(3):
            trainer.train_step(examples, {}, step)
        found.append((trainer.weights().floats, trainer.optimizer_state()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    for name, array in found[0][1].items():
        np.testing.assert_array_equal(array, found[1][1][name], err_msg=name)


def test_a_damaged_member_is_refused(plan_of: PlanOf) -> None:
    plan = plan_of("mlp")
    spoiled = Plan(plan.manifest_bytes, lambda name: plan.read(name)[:-1] + b" ")
    with pytest.raises(PlanError, match="does not have the digest"):
        TorchTrainer(spoiled, threads=1)


def test_nothing_is_printed(plan_of: PlanOf, capfd: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of(plan_of("resnet"))
    trainer.train_step(batch(ZOO["resnet"], 4, 0), {}, 0)
    trainer.evaluate_step(batch(ZOO["resnet"], 4, 0))
    assert capfd.readouterr() == ("", "")


def test_buffers_that_a_step_exchanges_keep_their_values(plan_of: PlanOf) -> None:
    """A step writes its buffers in place: giving one back under another name must not lose it."""
    plan = plan_of("resnet")
    graph = read_graph(plan.read(FORWARD))
    first, second = "new.p.4.body.1.running_mean", "new.p.4.body.4.running_mean"
    other = {first: second, second: first}
    outputs = dict(graph.outputs)
    swapped = tuple((name, outputs[other.get(name, name)]) for name in outputs)
    usual = trainer_of(plan)
    crossed = trainer_of(ChangedPlan(plan, dataclasses.replace(graph, outputs=swapped)))
    for trainer in (usual, crossed):
        trainer.train_step(batch(ZOO["resnet"], 4, 0), {}, 0)
    expected, found = (plan.layout.unflatten(t.weights()) for t in (usual, crossed))
    for name in (first, second):
        kept, given = (one.removeprefix("new.p.") for one in (other[name], name))
        np.testing.assert_array_equal(found[given], expected[kept])
        assert not np.array_equal(expected[given], expected[kept])


def test_a_step_that_fails_leaves_the_buffers(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of("resnet")
    trainer = trainer_of(plan)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no memory for the backward pass")

    monkeypatch.setattr(torch.autograd, "grad", fail)
    with pytest.raises(PlanError, match="no memory for the backward pass"):
        trainer.train_step(batch(ZOO["resnet"], 4, 0), {}, 0)
    np.testing.assert_array_equal(trainer.weights().floats, plan.initial_weights().floats)
    np.testing.assert_array_equal(trainer.weights().integers, plan.initial_weights().integers)


class Tracking(torch.nn.Module):
    """Keeps a mean of its outputs in a buffer, with its gradient, and writes others afterwards."""

    def __init__(self, last: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.last = ZOO["mlp"].build(), last
        self.mean: torch.Tensor
        self.calls: torch.Tensor
        self.register_buffer("mean", torch.ones(5))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(features)
        if self.training:
            self.mean.mul_(0.9)
            self.mean.add_(0.1 * found.mean(0))
        found = found * self.mean
        if self.training:
            self.calls.add_(1.0)
        return self.last(found)  # type: ignore[no-any-return]


@pytest.mark.parametrize("last", [torch.nn.Identity(), torch.nn.BatchNorm1d(5)])
def test_a_buffer_that_is_written_with_its_gradient_concerns_no_other_and_no_later_step(
    last: torch.nn.Module,
) -> None:
    plan = opened(compile_case(ZOO["mlp"], "tracking", model=Tracking(last)))
    ours, theirs = trainer_of(plan), OnnxTrainer(plan, threads=1)
    theirs.set_weights(plan.initial_weights())
    for number in range(3):
        examples = batch(ZOO["mlp"], 8, number)
        found, expected = (one.train_step(examples, {}, 1) for one in (ours, theirs))
        assert found == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(ours.weights().floats, theirs.weights().floats, atol=1e-5)
