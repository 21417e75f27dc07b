"""The torch trainer against a loop written by hand: `python -m benchmarks.torch_client`.

Both train the same model on the same batches with the same settings: one through a compiled plan,
one as anybody would write it (module, loss, backward, `torch.optim`), with the loss read after each
step. They take turns within one process, so that the machine's mood strikes both, and the figure
is the median of the turns' ratios: above 1 the trainer is faster. One turn to warm up is left out.
"""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, cast, get_args

import click
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn

from benchmarks.report import Report, median
from coordinator.compiler.compile import compile_plan
from coordinator.compiler.compiled_plan import CompiledPlan
from edge_client.trainers import Precision
from edge_client.trainers.torch_device import torch_device
from edge_client.trainers.torch_trainer import TorchTrainer
from headwater.batch import Batch, TensorSignature
from headwater.plan import Plan
from tests.models.resnet import ResNet
from tests.models.transformer import Gpt

_COLUMNS = {
    "model": "model", "parameters": "parameters", "batch": "batch", "device": "device",
    "options": "options", "trainer_ms": "trainer ms", "loop_ms": "loop ms", "ratio": "ratio",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model with its data, and the optimizer as a plan and as torch have it."""

    build: Callable[[], nn.Module]
    input: TensorSignature
    target: TensorSignature
    optimizer: dict[str, Any]
    eager: Callable[[Any], torch.optim.Optimizer]


CASES = {
    "resnet18": Case(
        partial(ResNet, False, (64, 128, 256, 512), 2, 10),
        TensorSignature("image", (3, 32, 32), "float32"),
        TensorSignature("label", (), "int64", maximum=10),
        {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9},
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    ),
    "gpt": Case(
        partial(Gpt, 65, 64, 384, 6, 6, 0.0), TensorSignature("tokens", (64,), "int64", maximum=65),
        TensorSignature("next_tokens", (64,), "int64", maximum=65),
        {"name": "adamw", "learning_rate": 0.001, "weight_decay": 0.1},
        lambda parameters: torch.optim.AdamW(parameters, lr=0.001, weight_decay=0.1),
    ),
}  # fmt: skip

WAYS = [
    f"{precision}{compiled}"
    for precision in get_args(Precision)
    for compiled in ("", ", compiled")
]  # fmt: skip


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(CASES)))
@click.option("--batch", type=click.IntRange(1), help="[8 on a CPU, 128 on a GPU]")
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--turns", type=click.IntRange(1), default=7, show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Steps in a turn. [2 on a CPU, 50 on a GPU]")
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), help="How the trainer runs.")
@click.option("--json", "as_json", is_flag=True)
def main(
    models: tuple[str, ...],
    batch: int | None,
    device: str,
    threads: int,
    turns: int,
    steps: int | None,
    ways: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare the torch trainer with a hand-written loop of the same model."""
    place = torch_device(device)
    on_gpu = place.type == "cuda"
    report = Report("torch client", _COLUMNS, as_json=as_json)
    size = batch or (128 if on_gpu else 8)
    count = steps or (50 if on_gpu else 2)
    for name in models or CASES:
        model, plan = prepared(CASES[name], size)
        examples = drawn(CASES[name], size)
        for way in ways or (WAYS if on_gpu else WAYS[:1]):
            precision, _, compiled = way.partition(", ")
            trainer = TorchTrainer(
                plan, threads=threads, device=str(place), compile=bool(compiled),
                precision=cast(Precision, precision),
            )  # fmt: skip
            trainer.set_weights(plan.initial_weights())
            loop = Loop(CASES[name], deepcopy(model).to(place), examples, place, precision)

            def step(trainer: TorchTrainer = trainer, examples: Batch = examples) -> object:
                return trainer.train_step(examples, {}, 0)

            pairs = [(timed(step, count), timed(loop.step, count)) for _ in range(turns + 1)][1:]
            report.add(
                {
                    "model": name,
                    "parameters": sum(p.numel() for p in model.parameters()),
                    "batch": size,
                    "device": torch.cuda.get_device_name(place) if on_gpu else f"cpu x {threads}",
                    "options": way,
                    "trainer_ms": 1000 * median([own for own, _ in pairs]),
                    "loop_ms": 1000 * median([other for _, other in pairs]),
                    "ratio": median([other / own for own, other in pairs]),
                }
            )


def prepared(case: Case, size: int) -> tuple[nn.Module, Plan]:
    """The model and its plan, which begin with the same weights."""
    torch.manual_seed(0)
    model = case.build()
    return model, opened(
        compile_plan(
            model, "cross_entropy", ["accuracy"], case.optimizer, [case.input], [case.target],
            name="benchmark", batch_size=size, seed=0,
        )
    )  # fmt: skip


class Loop:
    """What an author would write."""

    def __init__(
        self, case: Case, model: nn.Module, examples: Batch, device: torch.device, precision: str
    ) -> None:
        self._model = model.train()
        self._optimizer = case.eager(model.parameters())
        self._examples = examples
        self._device = device
        self._autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=precision == "bfloat16"
        )

    def step(self) -> float:
        """One step; its loss."""
        x, y = (
            torch.from_numpy(array).to(self._device)
            for array in (*self._examples.inputs, *self._examples.targets)
        )
        self._optimizer.zero_grad()
        with self._autocast:
            output = self._model(x)
            loss = F.cross_entropy(output.flatten(0, -2), y.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        accuracy = (output.detach().argmax(-1) == y).float().mean()
        self._optimizer.step()
        numbers: list[float] = torch.stack([loss.detach(), accuracy]).tolist()
        return numbers[0]


def timed(step: Callable[[], object], count: int) -> float:
    """Seconds a step, over `count` of them; each ends with its loss on the host."""
    started = time.perf_counter()
    for _ in range(count):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def drawn(case: Case, size: int) -> Batch:
    """A random batch."""
    draw = np.random.default_rng(0)

    def values(signature: TensorSignature) -> Any:
        shape = (size, *signature.shape)
        if signature.dtype == "float32":
            return draw.standard_normal(shape, np.float32)
        return draw.integers(0, signature.maximum or 2, shape)

    return Batch((values(case.input),), (values(case.target),))


def opened(compiled: CompiledPlan) -> Plan:
    """The plan as a device has it, without a file."""
    members = {member.digest: name for name, member in compiled.manifest.members.items()}
    return Plan.from_blobs(compiled.manifest.to_bytes(), lambda d: compiled.members[members[d]])


if __name__ == "__main__":
    main()
