"""The time of a step in onnxruntime beside that of plain eager torch, in one process.

`python -m benchmarks.plan_step MODEL PLAN EXAMPLES THREADS SECONDS` takes turns, one step each, so
that whatever else the machine does falls on both. Eager torch is the loop that an author writes:
forward, backward, torch.optim, and the loss as a number. `python -m benchmarks.plan_step MODEL`
`EXAMPLES STEPS` takes only eager steps and prints the process's peak memory.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from benchmarks.plan_client import peak_memory_mib, random_batch
from benchmarks.report import median
from coordinator.compiler.losses import loss_function
from coordinator.compiler.metrics import metric_functions
from coordinator.compiler.optimizers import optimizer_from
from edge_client.trainers import open_trainer
from headwater.batch import Array, Batch
from headwater.plan import Plan
from headwater.values import batch_values, frozen_values, state_values
from tests.models import MODELS
from tests.zoo import Case, batch

WARM_UP, LEAST, MOST = 2, 5, 200
"""Pairs of steps: before the count, and how many count at least and at most."""
TOP = 5
"""Operators that a profile names."""


def eager_trainer(case: Case) -> Callable[[Batch], float]:
    """A function that trains the model on a batch and returns its loss."""
    model = case.build().train()
    settings, learning_rate = optimizer_from(case.optimizer)
    optimizer = settings.eager([p for p in model.parameters() if p.requires_grad], learning_rate)
    loss, metrics = loss_function(case.loss), metric_functions(case.metrics)

    def step(examples: Batch) -> float:
        inputs, targets = (
            [torch.from_numpy(array) for array in arrays]
            for arrays in (examples.inputs, examples.targets)
        )
        optimizer.zero_grad()
        output = model(*inputs)
        result = loss(output, *targets)
        torch.autograd.backward(result)
        optimizer.step()
        for metric in metrics.values():
            metric(output.detach(), *targets).item()
        return float(result.item())

    return step


def step_milliseconds(
    case: Case, plan: Plan, examples: int, threads: int, seconds: float
) -> dict[str, float]:
    """Medians of both, and the median of the ratios of neighbours."""
    torch.set_num_threads(threads)
    trainer = open_trainer(plan, "onnxruntime", threads=threads)
    trainer.set_weights(plan.initial_weights())
    eager = eager_trainer(case)
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < WARM_UP + LEAST or (time.perf_counter() < end and len(pairs) < MOST):
        data = random_batch(plan.manifest, examples, len(pairs))
        begin = time.perf_counter()
        trainer.train_step(data, {}, len(pairs))
        middle = time.perf_counter()
        eager(data)
        pairs.append((middle - begin, time.perf_counter() - middle))
    ours, theirs = zip(*pairs[WARM_UP:], strict=True)
    return {
        "onnxruntime_ms": 1000 * median(ours),
        "eager_ms": 1000 * median(theirs),
        "ratio": median([one / two for one, two in zip(ours, theirs, strict=True)]),
        "pairs": len(ours),
    }


def profile(plan: Plan, examples: int, steps: int = 3) -> str:
    """Where onnxruntime spends a step on one thread: the operators that take most, in percent."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="headwater-profile-") as folder:
        options.profile_file_prefix = f"{folder}/step"
        session = onnxruntime.InferenceSession(plan.read("train.onnx"), options)
        values = _values(plan, examples)
        feeds = {port.name: values[port.name] for port in session.get_inputs()}
        for _ in range(steps):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]] += event["dur"]
    whole = times.total()
    return ", ".join(f"{name} {100 * one / whole:.0f}%" for name, one in times.most_common(TOP))


def _values(plan: Plan, examples: int) -> dict[str, Array]:
    manifest = plan.manifest
    values = state_values(plan, plan.initial_weights()) | frozen_values(plan)
    values |= batch_values(random_batch(manifest, examples, 0))
    for slot in manifest.optimizer.slots:
        values[slot.value_name] = np.full(slot.shape, slot.initial, np.float32)
    for name, value in manifest.hyperparameters.items():
        values[f"h.{name}"] = np.array(value, np.float32)
    return values | {"seed": np.array(1, np.int64)}


def main(name: str, *arguments: str) -> dict[str, object]:
    """What the command line asks for."""
    case = MODELS[name].full
    if len(arguments) == 2:
        torch.set_num_threads(1)
        step = eager_trainer(case)
        for seed in range(int(arguments[1])):
            step(batch(case, int(arguments[0]), seed))
        return {"peak_mib": peak_memory_mib()}
    path, examples, threads, seconds = arguments
    plan = Plan.open(path)
    found: dict[str, object] = {
        **step_milliseconds(case, plan, int(examples), int(threads), float(seconds))
    }
    if threads == "1":
        found["profile"] = profile(plan, int(examples))
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
