"""A plan without graphs, a trainer that adds one, data of ones, and a clock that tests move."""

import asyncio
import io
import itertools
import math
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edge_client.identity import Identity
from edge_client.session import Session
from edge_client.settings import Settings
from edge_client.state import StateDirectory
from headwater.batch import Batch, TensorSignature
from headwater.layout import Role, TensorSpec, Weights
from headwater.manifest import (
    BatchCost,
    GraphPort,
    Manifest,
    Member,
    OptimizerSpec,
    ParameterGroup,
)
from headwater.plan import Plan
from headwater.safetensors import write_weights
from headwater.v1 import fleet_pb2 as pb
from tests.client.fake_fleet import FakeFleet, sha256

PACE_SECONDS = 0.005
FREE_BELOW_SECONDS = 20.0
CLIENT_ID = "ab" * 16


class ManualClock:
    """Waits below half a minute pass at once (backoff, progress); longer ones when tests say so."""

    def __init__(self) -> None:
        self._now = 0.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []
        self._changed = asyncio.Event()

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds < FREE_BELOW_SECONDS:
            await asyncio.sleep(PACE_SECONDS)
            return
        wake = asyncio.Event()
        self._sleepers.append((self._now + seconds, wake))
        self._changed.set()
        await wake.wait()

    async def sleeping_for(self, seconds: float) -> None:
        """Return once somebody sleeps for that long."""
        async with asyncio.timeout(20):
            while not any(math.isclose(end - self._now, seconds) for end, _ in self._sleepers):
                self._changed.clear()
                await self._changed.wait()

    def advance(self, seconds: float) -> None:
        self._now += seconds
        for sleeper in list(self._sleepers):
            if sleeper[0] <= self._now:
                self._sleepers.remove(sleeper)
                sleeper[1].set()


def tiny_manifest(elements: int = 4, **changes: Any) -> tuple[Manifest, dict[str, bytes]]:
    members = {
        name: f"bytes of {name} for {elements}".encode() * 20
        for name in (
            "train.onnx",
            "evaluate.onnx",
            "forward.aten.json",
            "apply.aten.json",
            "evaluate.aten.json",
        )
    }
    fields: dict[str, Any] = {
        "name": "tiny",
        "versions": {},
        "opset": 20,
        "tensors": (
            TensorSpec("weight", (elements,), "float32", Role.TRAINABLE),
            TensorSpec("seen", (), "int64", Role.AVERAGED_BUFFER),
        ),
        "inputs": (TensorSignature("x0", (2,), "float32"),),
        "targets": (TensorSignature("y0", (), "int64", 3),),
        "metrics": ("accuracy",),
        "optimizer": OptimizerSpec("sgd", (ParameterGroup({}, 1.0, ("weight",)),), ()),
        "hyperparameters": {"learning_rate": 0.1},
        "uses_seed": False,
        "batch_size": 4,
        "graphs": {"train.onnx": GraphPort((), ())},
        "peak_memory_bytes": BatchCost(1000, 10),
        "operations": BatchCost(0, 100),
        "parity": {},
        "members": {name: Member(sha256(data), len(data)) for name, data in members.items()},
    }
    return Manifest(**(fields | changes)), members


class TinyJob:
    """A plan and weights in a fleet's blobs, and assignments of them."""

    def __init__(self, fleet: FakeFleet, elements: int = 4, **changes: Any) -> None:
        self.manifest, self.members = tiny_manifest(elements, **changes)
        self.layout = self.manifest.layout
        self.plan_digest = fleet.add_blob(self.manifest.to_bytes())
        for data in self.members.values():
            fleet.add_blob(data)
        self.weights = Weights(np.arange(elements, dtype=np.float32), np.array([7]))
        file = io.BytesIO()
        write_weights(file, self.layout, self.weights)
        self.weights_digest = fleet.add_blob(file.getvalue())

    def assignment(self, assignment_id: int = 1, **changes: Any) -> pb.Assignment:
        fields: dict[str, Any] = {
            "assignment_id": assignment_id,
            "job": "tiny-job",
            "round_number": assignment_id,
            "purpose": pb.PURPOSE_TRAIN,
            "plan_digest": self.plan_digest,
            "weights_digest": self.weights_digest,
            "dataset": "ones",
            "local_epochs": 2,
            "batch_size": 4,
            "hyperparameters": {"learning_rate": 0.5},
            "seed": 11,
            "encoding": "fp32",
        }
        return pb.Assignment(**(fields | changes))


class AddingTrainer:
    """Each step adds one to every weight; `gate` holds steps, `loss` is what they report."""

    def __init__(self) -> None:
        self.opened: list[Plan] = []
        self.steps: list[tuple[int, float, int]] = []
        self.started = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.loss = 1.0
        self.failure: Exception | None = None
        self.slot = 0.0
        self._floats = np.zeros(0, np.float32)
        self._integers = np.zeros(0, np.int64)

    def open(self, plan: Plan) -> "AddingTrainer":
        self.opened.append(plan)
        return self

    def set_weights(self, weights: Weights, *, anchor: bool = True) -> None:
        self._floats, self._integers = weights.floats.copy(), weights.integers.copy()

    def weights(self) -> Weights:
        return Weights(self._floats.copy(), self._integers.copy())

    def reset_optimizer(self) -> None:
        self.slot = 0.0

    def optimizer_state(self) -> dict[str, Any]:
        return {"o.step": np.array(self.slot, np.float32)}

    def set_optimizer_state(self, state: Mapping[str, Any]) -> None:
        self.slot = float(state["o.step"])

    def set_correction(self, correction: Mapping[str, Any] | None) -> None:
        raise AssertionError("nothing of the client's sets corrections")

    def train_step(
        self, batch: Batch, hyperparameters: Mapping[str, float], seed: int
    ) -> dict[str, float]:
        self.started.set()
        assert self.gate.wait(20)
        if self.failure is not None:
            raise self.failure
        self.slot += 1
        self.steps.append((batch.size, hyperparameters["learning_rate"], seed))
        self._floats += 1
        self._integers += 1
        return {"loss": self.loss, "accuracy": float(len(self.steps))}

    def evaluate_step(self, batch: Batch) -> dict[str, float]:
        return {"loss": float(self._floats.sum()), "accuracy": float(batch.size)}


class Ones:
    """Ten examples of ones."""

    name = "ones"

    def __init__(self, count: int = 10) -> None:
        self.count = count
        self.seeds: list[int | None] = []

    def example_count(self) -> int:
        return self.count

    def batches(self, batch_size: int, seed: int | None) -> Iterator[Batch]:
        self.seeds.append(seed)
        for start in itertools.takewhile(
            lambda at: at < self.count, itertools.count(0, batch_size)
        ):
            size = min(batch_size, self.count - start)
            yield Batch((np.ones((size, 2), np.float32),), (np.zeros(size, np.int64),))


@asynccontextmanager
async def running(session: Session) -> AsyncIterator[None]:
    """The session at work, until the body ends."""
    task = asyncio.create_task(session.run())
    try:
        yield
    finally:
        session.stop()
        async with asyncio.timeout(20):
            await task


class Device:
    """A client over a state directory, with fakes for everything that computes."""

    def __init__(self, fleet: FakeFleet, folder: Path, **settings: Any) -> None:
        self.state = StateDirectory(folder)
        folder.mkdir(exist_ok=True)
        self.clock = ManualClock()
        self.trainer = AddingTrainer()
        self.source = Ones()
        fields: dict[str, Any] = {
            "coordinator": fleet.address,
            "data": {"ones": "ones:"},
            "state": folder,
            "name": "tester",
            "trainer": "onnxruntime",
            "threads": 1,
        }
        self.session = Session(
            Settings(**(fields | settings)),
            self.state,
            Identity(CLIENT_ID, "cd" * 16),
            open_trainer=self.trainer.open,
            open_source=lambda binding, inputs, targets: self.source,
            clock=self.clock,
            random=lambda: 0.0,
        )
        self._running = running(self.session)

    async def __aenter__(self) -> "Device":
        await self._running.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.trainer.gate.set()
        await self._running.__aexit__(None, None, None)

    async def training(self) -> None:
        """Return once a step has begun."""
        assert await asyncio.to_thread(self.trainer.started.wait, 20)

    @property
    def journaled(self) -> list[str]:
        return sorted(path.name for path in self.state.updates.iterdir())
