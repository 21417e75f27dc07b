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

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from torch import nn

from coordinator.compiler.aten_form import to_json
from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.compiler.keras_model import as_module
from coordinator.compiler.losses import Loss, loss_function
from coordinator.compiler.metrics import Metric, metric_functions
from coordinator.compiler.onnx_lowering import lower
from coordinator.compiler.optimizers import optimizer_from
from coordinator.compiler.options import PLAIN, StepOptions
from coordinator.compiler.parity import check_parity
from coordinator.compiler.plan_manifest import graph_ports, plan_manifest, tensor_members
from coordinator.compiler.signatures import check_counts, check_signatures, random_batch
from coordinator.compiler.state import copied
from coordinator.compiler.step import Recipe
from coordinator.compiler.step_inputs import hyperparameters_of
from coordinator.compiler.trace import TracedStep
from coordinator.compiler.traces import decomposed, trace_members
from headwater.batch import TensorSignature
from headwater.errors import CompileError, PlanError
from headwater.manifest import Manifest
from headwater.plan_checks import check_graph
from headwater.values import check_outputs, training_outputs

Progress = Callable[[str], None]


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
    check_counts(batch_size, seed)
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
    traces = trace_members(recipe, loss, inputs, targets)
    check_signatures([*traces.inputs, *traces.targets])
    say("lowering to ONNX")
    lowered = decomposed(traces)
    members = {member: _onnx(traced, member) for member, traced in lowered.items()}
    for member, traced in traces.torch_steps.items():
        members[member] = to_json(traced.module, traced.inputs, traced.outputs)
    say("comparing the graphs with eager torch")
    hyperparameters = hyperparameters_of(options, learning_rate)
    parity = check_parity(
        recipe, traces.state, members, graph_ports(lowered), traces.torch_steps,
        lambda size, draw: random_batch(traces.inputs, traces.targets, size, seed * 1000 + draw),
        batch_size, hyperparameters,
    )  # fmt: skip
    members |= tensor_members(traces.state)
    manifest = plan_manifest(
        traces, lowered, members, name=name, batch_size=batch_size,
        hyperparameters=hyperparameters, parity=parity,
    )  # fmt: skip
    check_outputs(manifest.graphs["train.onnx"].outputs, training_outputs(manifest), "train.onnx")
    _check_manifest(manifest)
    return CompiledPlan(manifest, dict(sorted(members.items())))


def _check_manifest(manifest: Manifest) -> None:
    """Whether devices will read it."""
    try:
        Manifest.from_bytes(manifest.to_bytes())
    except PlanError as error:
        raise CompileError(f"no device would take this plan: {error}") from error


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
