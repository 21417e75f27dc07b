"""Which device torch trains on, and whether it can compile for it."""

import importlib
import os
import shutil
import warnings

import torch

from headwater.errors import UsageError


def torch_device(name: str) -> torch.device:
    """The device of this name; "auto" is the first GPU that torch sees, else the CPU.

    Raises:
        UsageError: torch cannot use it here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise UsageError(
            f"device {name!r} cannot be used ({reason}): choose auto, cpu, or one of "
            f"{torch.cuda.device_count()} GPUs as cuda:0, cuda:1, ..."
        ) from error
    return device


def load_compiler() -> None:
    """Import torch's compiler, silenced: its hints concern authors of kernels, not this user.

    Raises:
        UsageError: there is no C++ compiler, so it would fail later.
    """
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    if not any(shutil.which(name) for name in names):
        raise UsageError(
            f"--compile needs a C++ compiler, and there is none ({', '.join(names)}): install one, "
            "or leave --compile out"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch._inductor.compile_fx")
    warnings.filterwarnings("ignore", module=r"torch\._inductor")
