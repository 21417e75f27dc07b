"""From a torch module, a loss and an optimizer to a plan.

    from coordinator.compiler.compile import compile_plan
    from headwater.batch import TensorSignature

    compiled = compile_plan(
        Net(), "cross_entropy", ["accuracy"],
        {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9},
        [TensorSignature("image", (3, 32, 32), "float32")], [TensorSignature("label", (), "int64")],
        name="cifar10-lenet", batch_size=32, seed=1,
    )
    compiled.write("cifar10-lenet.plan")

One trace of the training step gives the training, gradient and torch forms; one of evaluation gives
evaluation and prediction. Before anything is returned the parity gate compares what the graphs
compute with eager torch.
"""

import copy
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from coordinator.compiler import step as steps
from coordinator.compiler.aten_form import to_json
from coordinator.compiler.decompositions import table
from coordinator.compiler.losses import Loss, loss_function
from coordinator.compiler.memory import peak_memory
from coordinator.compiler.metrics import Metric, metric_functions
from coordinator.compiler.onnx_graph import OPSET
from coordinator.compiler.onnx_lowering import lower
from coordinator.compiler.optimizers import optimizer_from
from coordinator.compiler.parity import check_parity
from coordinator.compiler.signatures import (
    bounded_inputs,
    bounded_targets,
    check_signatures,
    random_batch,
)
from coordinator.compiler.state import ModelState, model_state, state_names
from coordinator.compiler.step import LEARNING_RATE, SEED, Recipe
from coordinator.compiler.trace import TRACE_BATCH_SIZE, TracedStep, decompose, trace_step
from headwater.batch import Array, TensorSignature
from headwater.errors import CompileError, PlanError
from headwater.manifest import (
    GraphPort,
    Manifest,
    Member,
    OptimizerSpec,
    Slot,
)
from headwater.plan import FROZEN, WEIGHTS, write_plan
from headwater.plan_checks import check_graph
from headwater.safetensors import write_tensors, write_weights
from headwater.values import check_outputs, training_outputs

Progress = Callable[[str], None]


@dataclass(frozen=True)
class CompiledPlan:
    """A plan in memory, past the parity gate. The figures of the gate are `manifest.parity`."""

    manifest: Manifest
    members: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """The plan's identity, the SHA-256 of its manifest."""
        return hashlib.sha256(self.manifest.to_bytes()).hexdigest()

    def read(self, member: str) -> bytes:
        """The bytes of a member."""
        return self.members[member]

    def write(self, path: str | Path) -> str:
        """Write a `.plan` file, or a directory where the path has no such suffix; its digest."""
        return write_plan(path, self.manifest, self.members)


@dataclass(frozen=True)
class _Traces:
    """The traced steps, named as the plan's members."""

    steps: Mapping[str, TracedStep]
    state: ModelState
    recipe: Recipe


def compile_plan(
    model: nn.Module,
    loss: Loss,
    metrics: Sequence[str] | Mapping[str, str | Metric],
    optimizer: Mapping[str, Any],
    inputs: Sequence[TensorSignature],
    targets: Sequence[TensorSignature],
    *,
    name: str,
    batch_size: int,
    seed: int,
    progress: Progress | None = None,
) -> CompiledPlan:
    """Compile a training step; the model is copied and keeps its state.

    `loss` is a torch.nn.functional name or a function `(output, *targets) -> scalar`, as metrics
    are; `cross_entropy` also takes outputs [batch, time, class] with targets [batch, time].
    `optimizer` is `{"name", "learning_rate", ...settings}`. `seed` draws the parity gate's data.
    The same arguments give the same bytes.

    Raises:
        CompileError: what the model, loss, metrics or optimizer do cannot become a plan, or its
            graphs do not compute what eager torch does.
    """
    say = progress or (lambda message: None)
    check_signatures([*inputs, *targets])
    chosen, learning_rate = optimizer_from(optimizer)
    recipe = Recipe(
        copy.deepcopy(model), loss_function(loss), metric_functions(metrics), chosen,
        len(inputs), len(targets), tuple(one.image for one in inputs),
    )  # fmt: skip
    say("tracing the evaluation step and the training step")
    traces, inputs, targets = _traced(recipe, loss, inputs, targets)
    check_signatures([*inputs, *targets])
    say("lowering to ONNX")
    lowered = {
        member: decompose(traced, table())
        for member, traced in traces.steps.items()
        if member.endswith(".onnx")
    }
    members = {member: _onnx(traced, member) for member, traced in lowered.items()}
    for member, traced in traces.steps.items():
        if member.endswith(".json"):
            members[member] = to_json(traced.module, traced.inputs, traced.outputs)
    say("comparing the graphs with eager torch")
    ports = {m: GraphPort(t.inputs, t.outputs) for m, t in lowered.items()}
    parity = check_parity(
        recipe, traces.state, members, ports, traces.steps["train.aten.json"],
        lambda size, draw: random_batch(inputs, targets, size, seed * 1000 + draw),
        batch_size, learning_rate,
    )  # fmt: skip
    members |= _tensor_members(traces.state)
    aliases, transient = state_names(recipe.model)
    manifest = Manifest(
        name=name,
        versions={
            "torch": torch.__version__.split("+")[0],
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        opset=OPSET,
        tensors=traces.state.specs,
        inputs=tuple(inputs),
        targets=tuple(targets),
        metrics=tuple(recipe.metrics),
        optimizer=_optimizer_spec(recipe),
        hyperparameters={"learning_rate": learning_rate},
        uses_seed=SEED in lowered["train.onnx"].inputs,
        batch_size=batch_size,
        graphs=ports,
        peak_memory_bytes=peak_memory(lowered["train.onnx"], batch_size),
        parity=parity,
        members={
            member: Member(hashlib.sha256(data).hexdigest(), len(data))
            for member, data in sorted(members.items())
        },
        aliases=aliases,
        transient=transient,
    )
    check_outputs(ports["train.onnx"].outputs, training_outputs(manifest), "train.onnx")
    return CompiledPlan(manifest, dict(sorted(members.items())))


def _traced(
    recipe: Recipe,
    loss: Loss,
    inputs: Sequence[TensorSignature],
    targets: Sequence[TensorSignature],
) -> tuple[_Traces, Sequence[TensorSignature], Sequence[TensorSignature]]:
    """Trace everything once and cut the members' steps out of it."""
    state = model_state(recipe)
    examples = _examples(recipe, state, inputs, targets)
    batched = recipe.input_names + recipe.target_names
    recipe.model.eval()
    evaluation = trace_step(lambda t: steps.evaluate(recipe, t), examples, batched, recipe.model)
    recipe.model.train()
    training = trace_step(lambda t: steps.train(recipe, t), examples, batched, recipe.model)
    optimizing = trace_step(
        lambda t: steps.apply(recipe, t), _apply_examples(recipe, examples), [], recipe.model
    )
    state = state.with_constants(training)
    training, evaluation = state.renamed(training), state.renamed(evaluation)
    inputs = bounded_inputs(inputs, training)
    targets = bounded_targets(loss, targets, evaluation)
    results = ["loss", *(f"m.{name}" for name in recipe.metrics)]
    new = [name for name in training.outputs if name.startswith("new.")]
    buffers = [name for name in new if name[4:] in state.buffer_names]
    gradients = [name for name in training.outputs if name.startswith("g.")]
    train, evaluate = training.select([*new, *results]), evaluation.select(results)
    members = {
        "train.onnx": train,
        "gradients.onnx": training.select([*gradients, *buffers, *results]),
        "apply.onnx": optimizing.select(optimizing.outputs),
        "evaluate.onnx": evaluate,
        "predict.onnx": evaluation.select(["output"]),
        "train.aten.json": train,
        "evaluate.aten.json": evaluate,
    }
    return _Traces(members, state, recipe), inputs, targets


def _examples(
    recipe: Recipe,
    state: ModelState,
    inputs: Sequence[TensorSignature],
    targets: Sequence[TensorSignature],
) -> dict[str, Tensor]:
    """A tensor of the right shape and dtype for every input of the training step."""
    batch = random_batch(inputs, targets, TRACE_BATCH_SIZE, 0)
    examples = dict(state.values)
    for slot in _optimizer_spec(recipe).slots:
        examples[slot.value_name] = torch.zeros(slot.shape)
    examples |= zip(recipe.input_names, map(torch.from_numpy, batch.inputs), strict=True)
    examples |= zip(recipe.target_names, map(torch.from_numpy, batch.targets), strict=True)
    return examples | {LEARNING_RATE: torch.tensor(0.1), SEED: torch.tensor(1)}


def _apply_examples(recipe: Recipe, examples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parameters = {f"p.{name}": examples[f"p.{name}"] for name in recipe.parameters}
    slots = {name: value for name, value in examples.items() if name.startswith("o.")}
    gradients = {f"g.{name}": examples[f"p.{name}"].clone() for name in recipe.parameters}
    return {**parameters, **slots, **gradients, LEARNING_RATE: examples[LEARNING_RATE]}


def _onnx(traced: TracedStep, member: str) -> bytes:
    """The member's bytes, after the checks that a device will make."""
    model = lower(traced, member.removesuffix(".onnx"))
    data = model.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(data)
        check_graph(data, member)
    except (PlanError, onnx.checker.ValidationError) as error:
        raise CompileError(f"the compiled graph is not one that devices take: {error}") from error
    return bytes(data)


def _optimizer_spec(recipe: Recipe) -> OptimizerSpec:
    optimizer = recipe.optimizer
    slots = [Slot(name, None, ()) for name in optimizer.scalars]
    slots += [
        Slot(slot, name, tuple(parameter.shape))
        for slot in optimizer.slots
        for name, parameter in recipe.parameters.items()
    ]
    return OptimizerSpec(optimizer.name, optimizer.settings, tuple(slots))


def _tensor_members(state: ModelState) -> dict[str, bytes]:
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
