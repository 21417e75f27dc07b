"""The session with real plans, real data and real trainers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.identity import Identity
from edge_client.runtime import trainer_opener
from edge_client.seeds import seed_of_epoch, seed_of_step
from edge_client.session import Session
from edge_client.settings import Settings
from edge_client.state import StateDirectory
from headwater.encodings.names import encoding_named
from headwater.sources import open_source
from headwater.updates import StoredUpdate
from headwater.v1 import fleet_pb2 as pb
from tests.client.fake_fleet import FakeFleet
from tests.client.fakes import CLIENT_ID, running
from tests.plans import compiled, opened


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
async def test_the_update_is_what_the_trainer_alone_computes(
    fleet: FakeFleet, tmp_path: Path, backend: str
) -> None:
    case = compiled("dropout")
    plan = opened(case)
    digest = fleet.add_blob(case.manifest.to_bytes())
    blobs = {name: fleet.add_blob(data) for name, data in case.members.items()}
    generator = np.random.default_rng(1)
    shape = case.manifest.inputs[0].shape
    arrays: dict[str, Any] = {
        case.manifest.inputs[0].name: generator.standard_normal((21, *shape), np.float32),
        case.manifest.targets[0].name: generator.integers(0, 2, 21),
    }
    np.savez(tmp_path / "data.npz", **arrays)
    binding = str(tmp_path / "data.npz")
    settings = Settings(fleet.address, {"real": binding}, trainer=backend, device="cpu", threads=1)
    state = StateDirectory(tmp_path / "state")
    state.path.mkdir()
    async with running(Session(settings, state, Identity(CLIENT_ID, "cd" * 16))):
        await fleet.next("welcomed")
        fleet.push(
            assignment=pb.Assignment(
                assignment_id=1,
                purpose=pb.PURPOSE_TRAIN,
                plan_digest=digest,
                weights_digest=blobs["weights.safetensors"],
                dataset="real",
                local_epochs=2,
                batch_size=8,
                hyperparameters={"learning_rate": 0.05},
                seed=2**63 + 5,
                encoding="fp32",
            )
        )
        data = await fleet.next("update")
    (tmp_path / "sent").write_bytes(data)
    sent = StoredUpdate(tmp_path / "sent", plan.layout, encoding_named("fp32"))

    trainer = trainer_opener(backend, threads=1, device="cpu")(plan)  # type: ignore[arg-type]
    base = plan.initial_weights()
    trainer.set_weights(base)
    trainer.reset_optimizer()
    source = open_source(binding, case.manifest.inputs, case.manifest.targets)
    step = 0
    for epoch in range(2):
        for batch in source.batches(8, seed_of_epoch(2**63 + 5, epoch)):
            rates = {"learning_rate": float(np.float32(0.05))}
            trainer.train_step(batch, rates, seed_of_step(2**63 + 5, step))
            step += 1
    np.testing.assert_array_equal(sent.change(0), trainer.weights().floats - base.floats)
