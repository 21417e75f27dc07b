"""What a plan says of itself, and the members that hold its tensors."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import torch

from coordinator.compiler.memory import peak_memory
from coordinator.compiler.onnx_graph import OPSET
from coordinator.compiler.operations import operations
from coordinator.compiler.state import ModelState, state_names
from coordinator.compiler.step import SEED, Recipe
from coordinator.compiler.step_inputs import optimizer_spec
from coordinator.compiler.trace import TracedStep
from coordinator.compiler.traces import Traces
from headwater.batch import Array
from headwater.manifest import BatchCost, GraphPort, Manifest, Member, StepSpec
from headwater.plan import FROZEN, WEIGHTS
from headwater.safetensors import write_tensors, write_weights


def plan_manifest(
    traces: Traces,
    lowered: Mapping[str, TracedStep],
    members: Mapping[str, bytes],
    *,
    name: str,
    batch_size: int,
    hyperparameters: Mapping[str, float],
    parity: Mapping[str, float],
) -> Manifest:
    """The manifest of a compiled step: `lowered` are its ONNX members, `members` all bytes."""
    recipe, options = traces.recipe, traces.recipe.options
    aliases, transient = state_names(recipe.model)
    return Manifest(
        name=name,
        versions={
            "torch": torch.__version__.split("+")[0],
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        opset=OPSET,
        tensors=traces.state.specs,
        inputs=tuple(traces.inputs),
        targets=tuple(traces.targets),
        metrics=tuple(recipe.metrics),
        optimizer=optimizer_spec(recipe),
        hyperparameters=hyperparameters,
        uses_seed=SEED in lowered["train.onnx"].inputs,
        batch_size=batch_size,
        graphs=graph_ports(lowered),
        peak_memory_bytes=_step_memory(lowered["train.onnx"], recipe, batch_size),
        operations=operations(traces.training, batch_size),
        parity=parity,
        members={
            member: Member(hashlib.sha256(data).hexdigest(), len(data))
            for member, data in sorted(members.items())
        },
        aliases=aliases,
        transient=transient,
        step=StepSpec(
            options.clip_norm, options.clip_value, options.micro_batch_size, options.corrections
        ),
    )


def graph_ports(lowered: Mapping[str, TracedStep]) -> dict[str, GraphPort]:
    """The inputs and outputs of each ONNX member."""
    return {member: GraphPort(step.inputs, step.outputs) for member, step in lowered.items()}


def tensor_members(state: ModelState) -> dict[str, bytes]:
    """The initial weights, and the constant tensors if there are any."""
    arrays: dict[str, Array] = {n[2:]: np.asarray(v.numpy()) for n, v in state.values.items()}
    file = io.BytesIO()
    write_weights(file, state.layout, state.layout.flatten(arrays))
    members = {WEIGHTS: file.getvalue()}
    if state.frozen_names:
        file = io.BytesIO()
        write_tensors(file, {name: arrays[name] for name in state.frozen_names})
        members[FROZEN] = file.getvalue()
    return members


def _step_memory(train: TracedStep, recipe: Recipe, batch_size: int) -> BatchCost:
    """The step's, and where gradients are accumulated one more copy of them."""
    at_once = recipe.options.micro_batch_size or batch_size
    peak = peak_memory(train, min(batch_size, at_once))
    if recipe.options.micro_batch_size is None:
        return peak
    accumulators = sum(4 * parameter.numel() for parameter in recipe.parameters.values())
    return replace(peak, fixed=peak.fixed + accumulators)
