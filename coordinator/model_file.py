"""A model version as a file for other programs: safetensors, ONNX, or torch's own.

The safetensors and torch files hold the `state_dict` of the author's module: its keys, with frozen
and tied tensors and buffers, each in its dtype.
"""

from collections.abc import Mapping
from typing import Any, BinaryIO, Literal

import numpy as np

from coordinator.prediction_model import Origin, prediction_model
from headwater.batch import Array
from headwater.errors import require
from headwater.layout import Role
from headwater.manifest import Manifest
from headwater.plan import Plan
from headwater.safetensors import write_tensors

Format = Literal["safetensors", "onnx", "torch"]

ENDINGS: Mapping[Format, str] = {"safetensors": ".safetensors", "onnx": ".onnx", "torch": ".pt"}


def is_weights_file(manifest: Manifest) -> bool:
    """Whether a version's stored weights are the model's whole `state_dict`."""
    travels = all(one.role is not Role.FROZEN for one in manifest.tensors)
    return travels and not manifest.aliases and not manifest.transient


def write_model(
    file: BinaryIO, kind: Format, plan: Plan, weights: Mapping[str, Array], origin: Origin
) -> None:
    """Write a version; `weights` are its tensors by name, without frozen ones.

    Raises:
        PlanError: the plan is damaged, or has no prediction.
        UsageError: an ONNX file would have 2 GiB or more.
        MissingExtraError: for torch, which is not installed.
    """
    if kind == "onnx":
        file.write(prediction_model(plan, {**weights, **plan.frozen_tensors()}, origin))
    elif kind == "torch":
        _write_torch(file, plan, weights)
    else:
        tensors = state_dict(plan, weights)
        aliases = {key: tensors[name] for key, name in plan.manifest.aliases.items()}
        write_tensors(file, {**tensors, **aliases})


def state_dict(plan: Plan, weights: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of the author's `state_dict`, each tied one under its first key only."""
    tensors = {**weights, **plan.frozen_tensors()}
    return {name: tensors[name] for name in sorted(set(tensors) - set(plan.manifest.transient))}


def _write_torch(file: BinaryIO, plan: Plan, weights: Mapping[str, Array]) -> None:
    torch = require("torch", extra="torch", purpose="write a torch file")
    tensors: dict[str, Any] = {
        # A copy: torch wants memory that can be written, which a mapped file's cannot.
        name: torch.from_numpy(np.array(array))
        for name, array in state_dict(plan, weights).items()
    }
    torch.save(tensors | {k: tensors[n] for k, n in plan.manifest.aliases.items()}, file)
