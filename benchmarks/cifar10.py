"""CIFAR-10 over four client processes, next to centralized training with the same step.

The federated side is examples/cifar10 as it stands: two onnxruntime clients (in which importing
torch fails) and two torch clients with a quarter of the images each. The centralized side trains
the same module from the same first weights with torch's own SGD on all images, the same batch size
and learning rate, one epoch for each round, and is scored by the same held-out evaluation.

After r rounds every client has taken as many steps in sequence as the centralized run has after
r/4 epochs: that is the comparison that tells what averaging gains.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
import numpy as np

from benchmarks.deployment import Deployment, periods
from benchmarks.report import Report, median
from coordinator.author import compile_job
from coordinator.demo.processes import without
from coordinator.jobs.factory import JobCode
from coordinator.jobs.job_file import read_job
from coordinator.jobs.job_spec import JobSpec
from headwater.batch import Array
from headwater.partitioning.split import SplitRequest, split
from headwater.sources import open_source

if TYPE_CHECKING:
    import torch

    from coordinator.compiler.compiled_plan import CompiledPlan

EXAMPLE = Path(__file__).parent.parent / "examples" / "cifar10"
TRAINERS = ("onnxruntime", "onnxruntime", "torch", "torch")
EVALUATION_BATCH = 1000
COLUMNS = {
    "round": "round or epoch",
    "federated_accuracy": "federated, 4 clients",
    "seconds": "seconds a round",
    "centralized_accuracy": "centralized, an epoch a round",
    "same_steps_accuracy": "centralized, as many steps in sequence",
}


@click.command(help=__doc__)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="The folder of train.parquet and test.parquet.",
)
@click.option("--rounds", default=20, show_default=True, help="Rounds, and centralized epochs.")
@click.option("--examples", type=int, help="Only the first so many training images.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each round.")
def main(data: Path, rounds: int, examples: int | None, as_json: bool) -> None:
    report = Report("cifar10", COLUMNS, as_json=as_json)
    with TemporaryDirectory(prefix="headwater-benchmark-") as name:
        folder = Path(name)
        spec, job_file = _job(folder, rounds)
        plan = compile_job(job_file)
        train = data / "train.parquet" if examples is None else _first(data, folder, examples)
        accuracies, seconds = _federated(folder, train, data, job_file, plan, report)
        centralized = list(_centralized(spec, train, data / "test.parquet", rounds, report))
    for number, (accuracy, taken) in enumerate(zip(accuracies, seconds, strict=True), 1):
        epochs, rest = divmod(number, len(TRAINERS))
        report.add(
            {
                "round": number,
                "federated_accuracy": accuracy,
                "seconds": taken,
                "centralized_accuracy": centralized[number - 1],
                "same_steps_accuracy": None if rest else centralized[epochs - 1],
            }
        )
    report.say(f"median {median(seconds):.2f} s a round")


def _job(folder: Path, rounds: int) -> tuple[JobSpec, Path]:
    """The example's job with another number of rounds, beside its model."""
    text = (EXAMPLE / "job.toml").read_text().replace("count = 20", f"count = {rounds}")
    path = folder / "job.toml"
    path.write_text(text)
    (folder / "model.py").write_text((EXAMPLE / "model.py").read_text())
    return read_job(path), path


def _first(data: Path, folder: Path, examples: int) -> Path:
    """A file of the first training images, for a quick look."""
    from pyarrow import parquet

    path = folder / "first.parquet"
    parquet.write_table(parquet.read_table(data / "train.parquet").slice(0, examples), path)
    return path


def _federated(
    folder: Path, train: Path, data: Path, job_file: Path, plan: "CompiledPlan", report: Report
) -> tuple[list[float], list[float]]:
    """The held-out accuracy after each round, and the seconds that it took."""
    parts = folder / "parts"
    split(SplitRequest(source=str(train), output=parts, rule="iid", parts=len(TRAINERS), seed=1))
    with Deployment(["--data", f"cifar10={data / 'test.parquet'}"], folder) as deployment:
        for number, trainer in enumerate(TRAINERS):
            options = ["--trainer", trainer, "--threads", "1"]
            options += ["--data", f"cifar10={parts / f'part-{number:05}.parquet'}"]
            deployment.start_client(f"{trainer}-{number}", [*_program(trainer), "run"], options)
        rounds = deployment.run(
            job_file,
            plan,
            lambda one: report.say(f"round {one.number}: {dict(one.metrics_coordinator)}"),
        )
    trained = [one for one in rounds if one.version >= 0]
    return [one.metrics_coordinator["accuracy"] for one in trained], periods(rounds)[: len(trained)]


def _program(trainer: str) -> list[str]:
    if trainer == "onnxruntime":
        return without("torch", "edge_client")
    return [sys.executable, "-m", "edge_client"]


def _centralized(
    spec: JobSpec, train: Path, test: Path, epochs: int, report: Report
) -> Iterator[float]:
    """The held-out accuracy after each epoch of plain torch."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(1)
    with JobCode(EXAMPLE) as code:
        torch.manual_seed(spec.seed)  # as the compiler does: the same first weights
        model: torch.nn.Module = code.model(spec.model.factory)
    images, labels = map(torch.from_numpy, _arrays(spec, train))
    held_out = tuple(map(torch.from_numpy, _arrays(spec, test)))
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=spec.train.optimizer.learning_rate,
        momentum=spec.train.optimizer.momentum or 0.0,
    )
    order = torch.Generator().manual_seed(spec.seed)
    for epoch in range(epochs):
        began = time.perf_counter()
        shuffled = torch.randperm(len(labels), generator=order)
        for chosen in torch.split(shuffled, spec.train.batch_size):
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(model(images[chosen]), labels[chosen]))
            optimizer.step()
        accuracy = _accuracy(model, *held_out)
        taken = time.perf_counter() - began
        report.say(f"centralized epoch {epoch + 1}: {accuracy:.4f} in {taken:.1f} s")
        yield accuracy


def _accuracy(model: "torch.nn.Module", images: "torch.Tensor", labels: "torch.Tensor") -> float:
    import torch

    with torch.no_grad():
        parts = (torch.split(one, EVALUATION_BATCH) for one in (images, labels))
        right = sum(
            int((model(some).argmax(1) == wanted).sum())
            for some, wanted in zip(*parts, strict=True)
        )
    return right / len(labels)


def _arrays(spec: JobSpec, path: Path) -> tuple[Array, Array]:
    """A whole data set in memory, read as a client reads it and normalized as the job says."""
    (signature,), targets = spec.model.input_signatures, spec.model.target_signatures
    source = open_source(str(path), [signature], targets)
    batches = list(source.batches(EVALUATION_BATCH, None))
    images = np.concatenate([batch.inputs[0] for batch in batches]).astype(np.float32)
    images /= 255
    if signature.image is not None:
        images -= np.array(signature.image.mean, np.float32)[:, None, None]
        images /= np.array(signature.image.standard_deviation, np.float32)[:, None, None]
    return images, np.concatenate([batch.targets[0] for batch in batches])


if __name__ == "__main__":
    main()
