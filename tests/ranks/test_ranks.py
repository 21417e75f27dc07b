"""Two processes that make one client: they compute what one computes, and fail with a reason."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.trainers.torch_trainer import TorchTrainer
from headwater.v1 import fleet_pb2 as pb
from tests.client.fake_fleet import FakeFleet
from tests.plans import compiled, opened
from tests.ranks.rank_program import NAME, batches

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 240.0
PROGRAM = "tests.ranks.rank_program"

pytestmark = pytest.mark.slow


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "smooth.plan"
    compiled(NAME).write(path)
    return path


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    path = f"{ROOT}{os.pathsep}{ROOT / 'proto'}"
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def by_mpirun(arguments: list[str], folder: Path) -> list[subprocess.Popen[bytes]]:
    """Two processes as Open MPI would start them."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(2):
        place = {
            "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
        }  # fmt: skip
        with (folder / f"rank-{rank}.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", *arguments], cwd=ROOT, stderr=log, stdout=log,
                    env=environment(**place, **address),
                )
            )  # fmt: skip
    return started


def ended(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    try:
        return [process.wait(PATIENCE_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()


def notes(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "notes.json").read_text())
    return found


def alone() -> tuple[TorchTrainer, list[float]]:
    """One process with the whole batches, and its losses."""
    plan = opened(compiled(NAME))
    trainer = TorchTrainer(plan, threads=1, device="cpu")
    trainer.set_weights(plan.initial_weights())
    losses = [trainer.train_step(b, {}, step)["loss"] for step, b in enumerate(batches())]
    return trainer, losses


def test_two_ranks_of_torchrun_compute_what_one_process_computes(
    plan: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), "-m", PROGRAM, str(plan), str(tmp_path)]
    done = subprocess.run(
        [*command, "nothing"], cwd=ROOT, env=environment(), capture_output=True, text=True,
        timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trainer, losses = alone()
    assert notes(tmp_path)["losses"] == pytest.approx(losses, rel=1e-5)
    found, weights = np.load(tmp_path / "weights.npy"), trainer.weights().floats
    base = opened(compiled(NAME)).initial_weights().floats
    np.testing.assert_allclose(found - base, weights - base, rtol=1e-3, atol=1e-6)
    evaluation = trainer.evaluate_step(batches()[0])
    assert notes(tmp_path)["evaluation"] == pytest.approx(evaluation, rel=1e-4)


def test_a_rank_whose_step_fails_says_why_and_all_go_on(plan: Path, tmp_path: Path) -> None:
    assert ended(by_mpirun([PROGRAM, str(plan), str(tmp_path), "fail"], tmp_path)) == [0, 0]
    found = notes(tmp_path)
    assert found["reasons"] == ["rank 1 of 2 failed: the step does not fit"]
    assert len(found["losses"]) == len(batches()) - 1
    assert not found["broken"]


def test_a_rank_that_dies_is_noticed_at_once(plan: Path, tmp_path: Path) -> None:
    codes = ended(by_mpirun([PROGRAM, str(plan), str(tmp_path), "die"], tmp_path))
    assert codes == [0, -signal.SIGKILL]
    found = notes(tmp_path)
    assert found["broken"]
    assert len(found["losses"]) == 1
    assert "start the client again" in found["reasons"][0]


async def test_a_client_of_two_ranks_trains_and_ends_when_it_lost_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.client.fake_fleet.PATIENCE_SECONDS", PATIENCE_SECONDS)
    fleet = await FakeFleet().start()
    case = compiled(NAME)
    digest = fleet.add_blob(case.manifest.to_bytes())
    blobs = {name: fleet.add_blob(data) for name, data in case.members.items()}
    draw = np.random.default_rng(1)
    arrays = {
        case.manifest.inputs[0].name: draw.standard_normal((21, 3, 16, 16), np.float32),
        case.manifest.targets[0].name: draw.integers(0, 5, 21),
    }
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    arguments = ["edge_client", "run", "--coordinator", fleet.address, "--trainer", "torch"]
    arguments += ["--device", "cpu", "--state", str(tmp_path / "state"), "--threads", "2"]
    arguments += ["--data", f"images={tmp_path / 'data.npz'}"]
    ranks = by_mpirun(arguments, tmp_path)
    try:
        hello = await fleet.next("welcomed")
        assert hello.profile.runtime == "torch"
        assignment = pb.Assignment(
            assignment_id=1, purpose=pb.PURPOSE_TRAIN, plan_digest=digest, dataset="images",
            weights_digest=blobs["weights.safetensors"], local_epochs=1, batch_size=8,
            hyperparameters={"learning_rate": 0.05}, seed=5, encoding="fp32",
        )  # fmt: skip
        fleet.push(assignment=assignment)
        assert len(await fleet.next("update")) > 0
        ranks[1].kill()
        assignment.assignment_id = 2
        fleet.push(assignment=assignment)
        decline = await fleet.next("decline")
        assert decline.assignment_id == 2
        assert "start the client again, on all its devices" in decline.reason
        assert ended(ranks) == [3, -signal.SIGKILL]
        assert "start the client again" in (tmp_path / "rank-0.log").read_text()
    finally:
        for rank in ranks:
            rank.kill()
        await fleet.stop()
