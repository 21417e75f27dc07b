"""The torch trainer on a GPU: the same numbers as on the CPU, in every way it can be run there."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coordinator.compiler.options import StepOptions
from edge_client.trainers.torch_keep_mask import keep_mask
from edge_client.trainers.torch_replay import WARM_CALLS
from edge_client.trainers.torch_trainer import TorchTrainer
from headwater.errors import PlanError
from headwater.plan import Plan
from tests.plans import compile_case, compiled, opened
from tests.ranks.rank_program import NAME, batches
from tests.zoo import ZOO, batch

PlanOf = Callable[[str], Plan]
ROOT = Path(__file__).resolve().parents[2]
SIZES = [6] * 6 + [5, 6]
"""Batches of a run: enough of the first size that its step becomes a CUDA graph."""

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this machine has no CUDA GPU"
)


def trained(plan: Plan, name: str, **options: Any) -> tuple[list[float], np.ndarray]:
    """The losses of some steps and of evaluations after them, and the weights."""
    trainer = TorchTrainer(
        plan, **{"threads": 1, "device": "cuda", "precision": "float32", **options}
    )
    trainer.set_weights(plan.initial_weights())
    losses = [
        trainer.train_step(batch(ZOO[name], size, step), {}, step)["loss"]
        for step, size in enumerate(SIZES)
    ]
    losses += [trainer.evaluate_step(batch(ZOO[name], 6, seed))["loss"] for seed in range(5)]
    return losses, trainer.weights().floats


def assert_near(found: np.ndarray, expected: np.ndarray, share: float) -> None:
    """Weights agree to a share of the largest: Adam makes a whole step of a gradient near zero."""
    assert np.abs(found - expected).max() <= share * np.abs(expected).max()


@pytest.mark.parametrize("name", ZOO)
def test_a_gpu_trains_like_the_cpu(plan_of: PlanOf, name: str) -> None:
    plan = plan_of(name)
    losses, weights = trained(plan, name)
    expected, exact = trained(plan, name, device="cpu")
    assert losses == pytest.approx(expected, rel=2e-3, abs=2e-4)
    assert_near(weights, exact, 0.01)


@pytest.mark.parametrize("name", ZOO)
def test_steps_become_cuda_graphs(
    plan_of: PlanOf, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None falls back to single launches, which would compute the same, slowly."""
    replay, count = torch.cuda.CUDAGraph.replay, 0

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        nonlocal count
        count += 1
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    trained(plan_of(name), name)
    full = SIZES.count(6)
    assert count == (full - WARM_CALLS) + (len(SIZES) - WARM_CALLS) + (5 - WARM_CALLS)


def test_weights_that_are_set_reach_the_graph(plan_of: PlanOf) -> None:
    plan = plan_of("resnet")
    trainer = TorchTrainer(plan, threads=1, device="cuda")
    trainer.set_weights(plan.initial_weights())
    examples = batch(ZOO["resnet"], 6, 0)
    losses = [trainer.train_step(examples, {}, 0)["loss"] for _ in range(6)]
    trainer.set_weights(plan.initial_weights())
    trainer.reset_optimizer()
    assert [trainer.train_step(examples, {}, 0)["loss"] for _ in range(6)] == losses
    stopped = trainer.weights().floats
    trainer.train_step(examples, {"learning_rate": 0.0}, 0)
    buffers = trainer.weights().floats != stopped
    assert 0 < buffers.sum() < buffers.size / 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ZOO)
def test_compiled_steps_compute_the_same(plan_of: PlanOf, name: str, precision: str) -> None:
    plan = plan_of(name)
    losses, weights = trained(plan, name, compile=True, precision=precision)
    expected, exact = trained(plan, name, precision=precision)
    share = 0.01 if precision == "float32" else 0.05
    assert losses == pytest.approx(expected, rel=share, abs=share / 100)
    assert_near(weights, exact, share)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compile", [False, True])
def test_micro_batches_add_up(compile: bool) -> None:  # noqa: A002 - the trainer's word
    """The figures of a part outlive the next part, also where CUDA graphs reuse their memory."""
    plan = opened(compile_case(ZOO["smooth"], "smooth", options=StepOptions(micro_batch_size=2)))
    losses, weights = trained(plan, "smooth", compile=compile)
    expected, exact = trained(plan, "smooth", device="cpu")
    assert losses == pytest.approx(expected, rel=1e-3)
    assert_near(weights, exact, 0.01)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("name", ZOO)
def test_lower_precision_is_near(plan_of: PlanOf, name: str, precision: str) -> None:
    losses, weights = trained(plan_of(name), name, precision=precision)
    expected, _ = trained(plan_of(name), name)
    assert losses == pytest.approx(expected, rel=0.1, abs=0.02)
    assert weights.dtype == np.float32


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["resnet", "dropout", "smooth"])
def test_a_gpu_repeats_itself_bit_for_bit(plan_of: PlanOf, name: str, precision: str) -> None:
    first, second = (trained(plan_of(name), name, precision=precision) for _ in range(2))
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1], second[1])


def test_a_gpu_draws_the_masks_of_the_cpu() -> None:
    seed = torch.tensor(2**40 + 7)
    on_cpu, on_gpu = (
        keep_mask(seed, 3, (1000, 33), 0.3, torch.device(device)) for device in ("cpu", "cuda")
    )
    assert on_gpu.device.type == "cuda"
    assert torch.equal(on_cpu, on_gpu.cpu())


def test_a_step_that_does_not_fit_the_gpu_is_refused_and_the_next_goes_on(plan_of: PlanOf) -> None:
    plan = plan_of("lenet")
    trainer = TorchTrainer(plan, threads=1, device="cuda")
    trainer.set_weights(plan.initial_weights())
    expected = trainer.train_step(batch(ZOO["lenet"], 4, 0), {}, 0)
    trainer.set_weights(plan.initial_weights())
    share = 2**26 / torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share)
        with pytest.raises(PlanError, match="does not fit this device's memory"):
            trainer.train_step(batch(ZOO["lenet"], 20_000, 0), {}, 0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert trainer.train_step(batch(ZOO["lenet"], 4, 0), {}, 0) == expected


def test_a_rank_adds_by_nccl(tmp_path: Path) -> None:
    """One rank only: NCCL takes no two on one GPU."""
    plan = opened(compiled(NAME))
    trainer = TorchTrainer(plan, threads=1, device="cuda")
    trainer.set_weights(plan.initial_weights())
    expected = [trainer.train_step(one, {}, step)["loss"] for step, one in enumerate(batches())]
    path = tmp_path / "smooth.plan"
    compiled(NAME).write(path)
    program = ["-m", "tests.ranks.rank_program", str(path), str(tmp_path), "nothing", "cuda:0"]
    done = subprocess.run(
        [sys.executable, *program], cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["proto", *sys.path]),
             "NCCL_DEBUG": "VERSION"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "NCCL version" in done.stdout + done.stderr
    assert json.loads((tmp_path / "notes.json").read_text())["losses"] == pytest.approx(
        expected, rel=1e-5
    )
