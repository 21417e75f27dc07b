"""A client process that takes steps of a plan and says how much memory it had at most.

It imports what a device does: no torch for onnxruntime, no compiler, no author's code.
"""

import json
import sys
from pathlib import Path

import numpy as np

from edge_client.trainers import Backend, open_trainer
from headwater.batch import Array, Batch, TensorSignature
from headwater.manifest import Manifest
from headwater.plan import Plan

_UNBOUNDED = 2


def random_batch(manifest: Manifest, examples: int, seed: int) -> Batch:
    """Values that the plan takes: normal floats, uniform integers below the maximum."""
    draw = np.random.default_rng(seed)

    def values(signature: TensorSignature) -> Array:
        shape = (examples, *signature.shape)
        if signature.dtype == "float32":
            return draw.standard_normal(shape, dtype=np.float32)
        return draw.integers(0, signature.maximum or _UNBOUNDED, shape).astype(signature.dtype)

    return Batch(tuple(map(values, manifest.inputs)), tuple(map(values, manifest.targets)))


def peak_memory_mib() -> float:
    """The most that was resident of this process so far, as Linux counts it (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status lacks VmHWM: memory is measured on Linux only")


def take_steps(path: str, backend: Backend, examples: int, steps: int) -> None:
    """Open the plan as a client does and train on one thread."""
    plan = Plan.open(path)
    trainer = open_trainer(plan, backend, threads=1, device="cpu")
    trainer.set_weights(plan.initial_weights())
    for seed in range(steps):
        trainer.train_step(random_batch(plan.manifest, examples, seed), {}, seed)


if __name__ == "__main__":
    take_steps(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))  # type: ignore[arg-type]
    print(json.dumps({"peak_mib": peak_memory_mib()}))
