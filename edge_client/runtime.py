"""Which runtime trains here, decided without importing one."""

import importlib.util
from collections.abc import Callable
from typing import Literal

from edge_client.trainers import Precision, Trainer, open_trainer
from headwater.errors import MissingExtraError, UsageError
from headwater.plan import Plan

Backend = Literal["onnxruntime", "torch"]


def choose_backend(trainer: str) -> Backend:
    """`auto` is torch where it is installed, since its kernels are faster, else onnxruntime.

    Raises:
        MissingExtraError: torch was asked for and is not installed.
    """
    has_torch = importlib.util.find_spec("torch") is not None
    if trainer == "torch" and not has_torch:
        raise MissingExtraError(
            "torch is needed to train with --trainer torch and is not installed: "
            "pip install 'headwater[torch]'"
        )
    return "torch" if trainer == "torch" or (trainer == "auto" and has_torch) else "onnxruntime"


def choose_device(backend: Backend, device: str) -> str:
    """`cpu` or `cuda`: where this backend would train.

    Raises:
        UsageError: a GPU was asked for that this backend cannot use.
    """
    if backend == "torch":
        from edge_client.trainers.torch_device import torch_device

        return torch_device(device).type
    if device == "cuda":
        raise UsageError("--device cuda needs --trainer torch: onnxruntime trains on the CPU here")
    return "cpu"


def trainer_opener(
    backend: Backend,
    *,
    threads: int,
    device: str,
    compile: bool = False,  # noqa: A002 - torch's name
    precision: Precision = "tf32",
) -> Callable[[Plan], Trainer]:
    """Opens plans in this backend."""
    return lambda plan: open_trainer(
        plan, backend, threads=threads, device=device, compile=compile, precision=precision
    )
