"""One run of the demo: data, plan, coordinator, clients, rounds, model."""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from coordinator.author import compile_job
from coordinator.control_client import ControlClient
from coordinator.demo.processes import Processes, without
from headwater.errors import UnavailableError, UserError, WorldError
from headwater.partitioning.split import SplitRequest, split
from headwater.v1 import control_pb2

CLIENTS = (
    ("edge-0", "onnxruntime"),
    ("edge-1", "onnxruntime"),
    ("torch-0", "torch"),
    ("torch-1", "torch"),
)
ALPHA = 0.5
SPLIT_SEED = 1
HELD_OUT_FRACTION = 0.2


@dataclass(frozen=True)
class Result:
    """What the demo produced; its fields are the last line of `--json`."""

    rounds: int
    accuracy: float
    seconds: float
    bytes_down: int
    bytes_up: int
    database: str
    model: str

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def run_demo(say: Callable[[str], None], show_round: Callable[[control_pb2.Round], None]) -> Result:
    """Train the digits over four client processes, and leave the history and the model.

    `say` is told in words what happens, `show_round` each round as it ends.

    Raises:
        WorldError: a process ended early, or the job did not complete.
    """
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="headwater-demo-"))
    say(f"data directory {folder}")
    split(
        SplitRequest(
            source="digits:",
            output=folder / "parts",
            rule="dirichlet",
            parts=len(CLIENTS),
            alpha=ALPHA,
            seed=SPLIT_SEED,
            holdout=HELD_OUT_FRACTION,
        )
    )
    with ExitStack() as stack:
        processes = stack.enter_context(Processes(folder))
        address = _start(processes, folder)
        say(
            f"coordinator on {address}; 2 onnxruntime clients, in which importing torch fails, and "
            "2 torch clients"
        )
        job_file = job_folder() / "job.toml"
        plan = compile_job(job_file, progress=say)
        control = stack.enter_context(ControlClient(address))
        job = control.submit(job_file, plan)
        rounds = _follow(processes, control, job.reference, show_round)
        model = folder / f"{job.reference}-{rounds[-1].version}.safetensors"
        with model.open("wb") as file:
            control.pull(job.reference, -1, file)
    return Result(
        rounds=len(rounds),
        accuracy=rounds[-1].metrics_coordinator["accuracy"],
        seconds=round(time.monotonic() - began, 3),
        bytes_down=sum(one.bytes_down for one in rounds),
        bytes_up=sum(one.bytes_up for one in rounds),
        database=f"sqlite:///{folder / 'data' / 'headwater.db'}",
        model=str(model),
    )


def job_folder() -> Path:
    """The digits example: beside the packages in a source tree, inside the package in a wheel.

    Raises:
        UserError: it is in neither place.
    """
    package = Path(str(files("coordinator")))
    for folder in (package.parent / "examples" / "digits", package / "demo" / "digits"):
        if (folder / "job.toml").is_file():
            return folder
    raise UserError("the digits example is not installed: reinstall headwater")


def _start(processes: Processes, folder: Path) -> str:
    data = folder / "data"
    held_out = folder / "parts" / "holdout.npz"
    command = [sys.executable, "-m", "coordinator", "serve", "--listen", "127.0.0.1:0"]
    command += ["--data-directory", str(data), "--data", f"digits={held_out}"]
    processes.start("coordinator", command, {"HEADWATER_DATABASE": ""})
    address = processes.wait_for(data / "address")
    for number, (name, trainer) in enumerate(CLIENTS):
        part = folder / "parts" / f"part-{number:05}.npz"
        program = (
            without("torch", "edge_client")
            if trainer == "onnxruntime"
            else [sys.executable, "-m", "edge_client"]
        )
        command = [*program, "run", "--coordinator", address, "--name", name]
        command += ["--trainer", trainer, "--threads", "1", "--data", f"digits={part}"]
        processes.start(name, [*command, "--state", str(folder / name)], {})
    return address


def _follow(
    processes: Processes,
    control: ControlClient,
    reference: str,
    show_round: Callable[[control_pb2.Round], None],
) -> list[control_pb2.Round]:
    """The committed training rounds."""
    rounds: list[control_pb2.Round] = []
    try:
        with processes.watched(control.close):
            for news in control.follow(reference):
                if news.HasField("round"):
                    show_round(news.round)
                    rounds += [news.round] if news.round.version >= 0 else []
    except (UnavailableError, ValueError):  # the channel was closed, or its other end is gone
        processes.check()
        raise
    job = control.show_job(reference).job
    if job.state != "completed" or not rounds:
        raise WorldError(f"the job is {job.state}: {job.state_reason}")
    return rounds
