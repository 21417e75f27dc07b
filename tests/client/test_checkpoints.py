"""What outlives a process that dies in an assignment: how often, and how far it came."""

import errno
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_client.checkpoints import Checkpoints
from edge_client.optimizer_states import OptimizerStates
from edge_client.training import Activity, train
from headwater import steps
from headwater.batch import Batch
from headwater.safetensors import read_tensors, write_tensors
from headwater.v1 import fleet_pb2 as pb
from tests.client.fake_fleet import FakeFleet
from tests.client.fakes import Device, TinyJob
from tests.parity.steps import BACKENDS, started
from tests.plans import compiled, opened
from tests.zoo import ZOO, batch

EXAMPLES, BATCH = 22, 4


class Source:
    """Examples of a zoo model, in an order that follows the seed."""

    name = "zoo"

    def __init__(self, name: str) -> None:
        self._whole = batch(ZOO[name], EXAMPLES, 7)

    def example_count(self) -> int:
        return EXAMPLES

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        order = np.random.default_rng(seed).permutation(EXAMPLES)
        whole = Batch(
            tuple(x[order] for x in self._whole.inputs),
            tuple(y[order] for y in self._whole.targets),
        )
        for start in range(0, EXAMPLES, batch_size):
            yield whole.part(start, min(start + batch_size, EXAMPLES))


class DyingError(Exception):
    """The process dies here."""


class Mortal(Activity):
    """Dies after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    def step(self, done: int, total: int) -> None:
        if self._left == 0:
            raise DyingError
        self._left -= 1


def assignment(number: int = 1, **changes: object) -> pb.Assignment:
    fields = {"assignment_id": number, "job": "j", "batch_size": BATCH, "seed": 5} | changes
    return pb.Assignment(**fields)  # type: ignore[arg-type]


def every_step(folder: Path) -> Checkpoints:
    """Checkpoints whose interval is over at each look."""
    now = iter(range(10**6))
    return Checkpoints(folder, 0.5, lambda: float(next(now)))


@pytest.mark.parametrize("work", [{"local_epochs": 3}, {"local_steps": 14}])
@pytest.mark.parametrize("name", ["dropout", "resnet", "gru"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_goes_on_to_the_same_bits(
    backend: str, name: str, work: dict[str, int], tmp_path: Path
) -> None:
    plan, source, order = opened(compiled(name)), Source(name), assignment(**work)
    whole = started(plan, backend)
    expected = train(whole, source, order, Activity())
    for deaths in (1, 8, 3):  # each process comes some steps further than the one before
        checkpoints = every_step(tmp_path)
        checkpoints.begin("here:1", order)
        with pytest.raises(DyingError):
            train(started(plan, backend), source, order, Mortal(deaths), checkpoints)
    checkpoints = every_step(tmp_path)
    checkpoints.begin("here:1", order)
    last = started(plan, backend)
    assert train(last, source, order, Activity(), checkpoints) == expected
    np.testing.assert_array_equal(last.weights().floats, whole.weights().floats)
    np.testing.assert_array_equal(last.weights().integers, whole.weights().integers)
    for slot, array in whole.optimizer_state().items():
        np.testing.assert_array_equal(last.optimizer_state()[slot], array)


def test_nothing_is_written_before_the_interval_is_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 300.0, lambda: 0.0)
    checkpoints.begin("here:1", assignment(local_epochs=1))
    trainer = started(opened(compiled("mlp")), "onnxruntime")
    train(trainer, Source("mlp"), assignment(local_epochs=1), Activity(), checkpoints)
    assert [path.name for path in tmp_path.iterdir()] == ["begun.json"]


def test_deaths_are_counted_by_assignment(tmp_path: Path) -> None:
    def begun(number: int = 1, at: str = "here:1") -> int:
        return Checkpoints(tmp_path, 1.0).begin(at, assignment(number))

    assert [begun(), begun(), begun()] == [0, 1, 2]
    assert [begun(2), begun(1)] == [0, 0]
    assert [begun(1, "there:1"), begun(1, "there:1")] == [0, 1]


def test_an_orderly_stop_is_no_death_and_keeps_the_training(tmp_path: Path) -> None:
    order, plan = assignment(local_epochs=2), opened(compiled("mlp"))
    for _ in range(5):
        checkpoints = every_step(tmp_path)
        assert checkpoints.begin("here:1", order) == 0
        with pytest.raises(DyingError):
            train(started(plan, "onnxruntime"), Source("mlp"), order, Mortal(1), checkpoints)
        checkpoints.pause()
    point = every_step(tmp_path).restore(started(plan, "onnxruntime"))
    assert point is not None and point.steps == 5


def test_an_assignment_that_ends_leaves_nothing(tmp_path: Path) -> None:
    order = assignment(local_epochs=1)
    checkpoints = every_step(tmp_path)
    checkpoints.begin("here:1", order)
    trainer = started(opened(compiled("mlp")), "onnxruntime")
    train(trainer, Source("mlp"), order, Activity(), checkpoints)
    checkpoints.end()
    assert list(tmp_path.iterdir()) == []


def test_training_of_another_assignment_is_not_gone_on_with(tmp_path: Path) -> None:
    plan, trainer = opened(compiled("mlp")), started(opened(compiled("mlp")), "onnxruntime")
    checkpoints = every_step(tmp_path)
    checkpoints.begin("here:1", assignment(1, local_epochs=1))
    train(trainer, Source("mlp"), assignment(1, local_epochs=1), Activity(), checkpoints)
    checkpoints = every_step(tmp_path)
    checkpoints.begin("here:1", assignment(2, local_epochs=1))
    fresh = started(plan, "onnxruntime")
    assert checkpoints.restore(fresh) is None
    np.testing.assert_array_equal(fresh.weights().floats, plan.initial_weights().floats)


@pytest.mark.parametrize("damage", [b"", b"[]", b"\\xff\\xfe", b'{"assignment": 3}'])
def test_a_torn_record_is_set_aside(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    Checkpoints(tmp_path, 1.0).begin("here:1", assignment())
    (tmp_path / "begun.json").write_bytes(damage)
    assert Checkpoints(tmp_path, 1.0).begin("here:1", assignment()) == 0
    assert "begun.json was damaged and is set aside" in caplog.text
    assert (tmp_path / "begun.damaged").read_bytes() == damage


@pytest.mark.parametrize("keep", [0, 20, -40])
def test_a_torn_checkpoint_begins_training_anew(tmp_path: Path, keep: int) -> None:
    plan, order = opened(compiled("resnet")), assignment(local_epochs=1)
    checkpoints = every_step(tmp_path)
    checkpoints.begin("here:1", order)
    whole = started(plan, "onnxruntime")
    expected = train(whole, Source("resnet"), order, Activity(), checkpoints)
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    again = started(plan, "onnxruntime")
    assert train(again, Source("resnet"), order, Activity(), every_step(tmp_path)) == expected
    assert math.isfinite(expected.metrics_after["loss"])


def test_a_checkpoint_of_another_optimizer_touches_nothing(tmp_path: Path) -> None:
    plan, order = opened(compiled("resnet")), assignment(local_epochs=1)
    checkpoints = every_step(tmp_path)
    checkpoints.begin("here:1", order)
    train(started(plan, "onnxruntime"), Source("resnet"), order, Activity(), checkpoints)
    path = tmp_path / "training.safetensors"
    kept = {name: array.copy() for name, array in read_tensors(path).items()}
    kept.pop(next(name for name in kept if name.startswith("slot.")))
    with path.open("wb") as file:
        write_tensors(file, kept)
    fresh = started(plan, "onnxruntime")
    assert every_step(tmp_path).restore(fresh) is None
    np.testing.assert_array_equal(fresh.weights().floats, plan.initial_weights().floats)


async def test_an_assignment_that_killed_two_processes_is_failed_and_not_tried(
    fleet: FakeFleet, tmp_path: Path
) -> None:
    job = TinyJob(fleet)
    async with Device(fleet, tmp_path / "state") as device:
        for _ in range(2):
            Checkpoints(device.state.checkpoints, 1.0).begin(fleet.address, job.assignment(1))
        await fleet.next("welcomed")
        fleet.push(assignment=job.assignment(1))
        failure = await fleet.next("failure")
        assert "2 processes of this client died in the middle of it" in failure.reason
        assert device.trainer.steps == []
        fleet.push(assignment=job.assignment(2))
        await fleet.next("update")
    assert list(device.state.checkpoints.iterdir()) == []


@pytest.mark.parametrize("open_folder", [lambda path: Checkpoints(path, 1.0), OptimizerStates])
def test_what_a_process_was_writing_when_it_ended_is_removed(
    tmp_path: Path, open_folder: Callable[[Path], object]
) -> None:
    (tmp_path / ".training.safetensors.0a1b.tmp").write_bytes(b"half a model")
    open_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_a_full_disk_holds_up_no_stop(
    fleet: FakeFleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(step: str, subject: object) -> None:
        if step == "write" and str(subject).endswith(".begun.json.tmp"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    job = TinyJob(fleet)
    async with Device(fleet, tmp_path / "state") as device:
        await fleet.next("welcomed")
        device.trainer.gate.clear()
        fleet.push(assignment=job.assignment(1))
        await device.training()
        with steps.observed(full):
            await device.__aexit__()
    assert "this stop counts as a death: no space is left" in caplog.text


async def test_an_update_is_delivered_although_its_checkpoint_stays(
    fleet: FakeFleet, tmp_path: Path
) -> None:
    def broken(step: str, subject: object) -> None:
        if step == "remove" and str(subject).endswith("begun.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    job = TinyJob(fleet)
    async with Device(fleet, tmp_path / "state"):
        await fleet.next("welcomed")
        with steps.observed(broken):
            fleet.push(assignment=job.assignment(1))
            await fleet.next("update")
