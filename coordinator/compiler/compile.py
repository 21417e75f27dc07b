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

One trace of the training step gives the training and gradient graphs; one of evaluation gives
evaluation and prediction. For torch the forward pass is traced again, with torch's own layers.
Before anything is returned the parity gate compares what the graphs compute with eager torch.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from coordinator.compiler.keras_model import as_module
from coordinator.compiler.losses import Loss, loss_function
from coordinator.compiler.memory import peak_memory
from coordinator.compiler.metrics import Metric, metric_functions
from coordinator.compiler.onnx_graph import OPSET
from coordinator.compiler.onnx_lowering import lower
from coordinator.compiler.operations import operations
from coordinator.compiler.optimizers import optimizer_from
from coordinator.compiler.options import PLAIN, StepOptions
from coordinator.compiler.parity import check_parity
from coordinator.compiler.signatures import (
    bounded_inputs,
    bounded_targets,
    check_signatures,
    random_batch,
)
from coordinator.compiler.state import ModelState, copied, model_state, state_names
from coordinator.compiler.step import SEED, Recipe
from coordinator.compiler.torch_form import trace_apply, trace_forwards
from coordinator.compiler.trace import TRACE_BATCH_SIZE, TracedStep, decompose, trace_step
from headwater.batch import Array, TensorSignature
from headwater.errors import CompileError, PlanError
from headwater.manifest import (
    BatchCost,
    GraphPort,
    Manifest,
    Member,
    OptimizerSpec,
    ParameterGroup,
    Slot,
    StepSpec,
)
from headwater.plan import FROZEN, WEIGHTS, write_plan
from headwater.plan_checks import check_graph
from headwater.safetensors import write_tensors, write_weights
from headwater.values import batch_values, check_outputs, training_outputs

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
    """What was traced for ONNX, which of its outputs make a member, and the torch members."""

    training: TracedStep
    optimizing: TracedStep
    evaluation: TracedStep
    torch_steps: Mapping[str, TracedStep]
    state: ModelState
    recipe: Recipe

    @property
    def cuts(self) -> dict[str, tuple[TracedStep, list[str]]]:
        """The ONNX members: `(trace, outputs)`."""
        results = _results(self.recipe)
        new = [name for name in self.training.outputs if name.startswith("new.")]
        buffers = [name for name in new if name[4:] in self.state.buffer_names]
        gradients = [name for name in self.training.outputs if name.startswith("g.")]
        predicted = list(filter(steps.is_output, self.evaluation.outputs))
        return {
            "train.onnx": (self.training, [*new, *results]),
            "gradients.onnx": (self.training, [*gradients, *buffers, *results]),
            "apply.onnx": (self.optimizing, list(self.optimizing.outputs)),
            "evaluate.onnx": (self.evaluation, results),
            "predict.onnx": (self.evaluation, predicted),
        }


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
    options: StepOptions = PLAIN,
    loss_settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> CompiledPlan:
    """Compile a training step; the model is copied and keeps its state.

    `loss` is a torch.nn.functional name or a function `(output, *targets) -> scalar`, as metrics
    are; `cross_entropy` also takes outputs [batch, time, class] with targets [batch, time].
    `optimizer` is `{"name", "learning_rate", ...settings}`; `options` is what else the step does.
    `seed` draws the parity gate's data. The same arguments give the same bytes.

    Raises:
        CompileError: what the model, loss, metrics or optimizer do cannot become a plan, or its
            graphs do not compute what eager torch does.
    """
    say = progress or (lambda message: None)
    check_signatures([*inputs, *targets])
    chosen, learning_rate = optimizer_from(optimizer)
    weighted = options.weight is not None
    recipe = Recipe(
        copied(as_module(model)), loss_function(loss, loss_settings, weighted=weighted),
        metric_functions(metrics), chosen, tuple(signature.name for signature in inputs),
        len(targets), options,
        tuple(signature.image for signature in inputs),
    )  # fmt: skip
    if options.weight is not None:
        targets = [*targets, TensorSignature(options.weight, (), "float32", is_weight=True)]
    say("tracing the evaluation step and the training step")
    traces, inputs, targets = _traced(recipe, loss, inputs, targets)
    check_signatures([*inputs, *targets])
    say("lowering to ONNX")
    lowered = _lowered(traces)
    members = {member: _onnx(traced, member) for member, traced in lowered.items()}
    for member, traced in traces.torch_steps.items():
        members[member] = to_json(traced.module, traced.inputs, traced.outputs)
    say("comparing the graphs with eager torch")
    hyperparameters = _hyperparameters(options, learning_rate)
    ports = {m: GraphPort(t.inputs, t.outputs) for m, t in lowered.items()}
    parity = check_parity(
        recipe, traces.state, members, ports, traces.torch_steps,
        lambda size, draw: random_batch(inputs, targets, size, seed * 1000 + draw),
        batch_size, hyperparameters,
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
        hyperparameters=hyperparameters,
        uses_seed=SEED in lowered["train.onnx"].inputs,
        batch_size=batch_size,
        graphs=ports,
        peak_memory_bytes=_peak_memory(lowered["train.onnx"], recipe, batch_size),
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
    forward, torch_evaluation = trace_forwards(recipe, examples, batched)
    state = state.with_constants(training)
    training, evaluation = state.renamed(training), state.renamed(evaluation)
    inputs = bounded_inputs(inputs, training)
    targets = bounded_targets(loss, targets, evaluation)
    results, forward = _results(recipe), state.renamed(forward)
    buffers = [name for name in forward.outputs if name.startswith("new.")]
    torch_steps = {
        "forward.aten.json": forward.select([*buffers, *results]),
        "apply.aten.json": trace_apply(recipe),
        "evaluate.aten.json": state.renamed(torch_evaluation).select(results),
    }
    traces = _Traces(training, optimizing, evaluation, torch_steps, state, recipe)
    return traces, inputs, targets


def _results(recipe: Recipe) -> list[str]:
    return ["loss", *(f"m.{name}" for name in recipe.metrics)]


def _lowered(traces: _Traces) -> dict[str, TracedStep]:
    """The ONNX members' steps; each trace is decomposed once, as the slowest part of a compile."""
    done: dict[int, TracedStep] = {}
    found = {}
    for member, (trace, outputs) in traces.cuts.items():
        if id(trace) not in done:
            done[id(trace)] = decompose(trace, table())
        found[member] = done[id(trace)].select(outputs)
    return found


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
        examples[slot.value_name] = torch.full(slot.shape, slot.initial)
    for name in recipe.added_names:
        examples[name] = examples[f"p.{name[2:]}"].clone()
    for name, value in _hyperparameters(recipe.options, 0.1).items():
        examples[f"h.{name}"] = torch.tensor(value)
    examples |= {name: torch.from_numpy(array) for name, array in batch_values(batch).items()}
    return examples | {SEED: torch.tensor(1)}


def _apply_examples(recipe: Recipe, examples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kinds = ("o.", "h.", "a.", "c.")
    taken = {name: value for name, value in examples.items() if name.startswith(kinds)}
    parameters = {f"p.{name}": examples[f"p.{name}"] for name in recipe.parameters}
    gradients = {f"g.{name}": examples[f"p.{name}"].clone() for name in recipe.parameters}
    return {**parameters, **gradients, **taken}


def _hyperparameters(options: StepOptions, learning_rate: float) -> dict[str, float]:
    """Defaults of the values that a job may change without compiling again."""
    values = {"learning_rate": learning_rate}
    return values if options.proximal is None else {**values, "proximal": options.proximal}


def _peak_memory(train: TracedStep, recipe: Recipe, batch_size: int) -> BatchCost:
    """The step's, and where gradients are accumulated one more copy of them."""
    at_once = recipe.options.micro_batch_size or batch_size
    peak = peak_memory(train, min(batch_size, at_once))
    if recipe.options.micro_batch_size is None:
        return peak
    accumulators = sum(4 * parameter.numel() for parameter in recipe.parameters.values())
    return replace(peak, fixed=peak.fixed + accumulators)


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
        Slot(slot, name, tuple(parameter.shape), initial)
        for slot, initial in optimizer.slots.items()
        for name, parameter in recipe.parameters.items()
    ]
    groups = tuple(
        ParameterGroup(group.optimizer.settings, group.learning_rate_scale, group.names)
        for group in recipe.groups
    )
    return OptimizerSpec(optimizer.name, groups, tuple(slots))


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
