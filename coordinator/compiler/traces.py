"""The traces that a plan is cut from.

One trace of the training step gives the training and the gradient graph, one of evaluation gives
evaluation and prediction, and one of the optimizer gives the apply graph. For torch the forward
pass is traced again, with torch's own layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coordinator.compiler import step as steps
from coordinator.compiler.decompose import decompose
from coordinator.compiler.decompositions import table, training_table
from coordinator.compiler.losses import Loss
from coordinator.compiler.signatures import bounded_inputs, bounded_targets, random_batch
from coordinator.compiler.state import ModelState, model_state
from coordinator.compiler.step import SEED, Recipe
from coordinator.compiler.step_inputs import hyperparameters_of, optimizer_spec
from coordinator.compiler.torch_form import trace_apply, trace_forwards
from coordinator.compiler.trace import TRACE_BATCH_SIZE, TracedStep, trace_step
from headwater.batch import TensorSignature
from headwater.values import batch_values


@dataclass(frozen=True)
class Traces:
    """What was traced for ONNX, which of its outputs make a member, and the torch members.

    `inputs` and `targets` have the bounds of their whole numbers that the traces showed.
    """

    recipe: Recipe
    state: ModelState
    inputs: Sequence[TensorSignature]
    targets: Sequence[TensorSignature]
    training: TracedStep
    optimizing: TracedStep
    evaluation: TracedStep
    torch_steps: Mapping[str, TracedStep]

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


def trace_members(
    recipe: Recipe,
    loss: Loss,
    inputs: Sequence[TensorSignature],
    targets: Sequence[TensorSignature],
) -> Traces:
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
    results, forward = _results(recipe), state.renamed(forward)
    buffers = [name for name in forward.outputs if name.startswith("new.")]
    torch_steps = {
        "forward.aten.json": forward.select([*buffers, *results]),
        "apply.aten.json": trace_apply(recipe),
        "evaluate.aten.json": state.renamed(torch_evaluation).select(results),
    }
    return Traces(
        recipe, state, bounded_inputs(inputs, training),
        bounded_targets(loss, targets, evaluation),
        training, optimizing, evaluation, torch_steps,
    )  # fmt: skip


def decomposed(traces: Traces) -> dict[str, TracedStep]:
    """The ONNX members' steps; each trace is decomposed once, as the slowest part of a compile."""
    done: dict[int, TracedStep] = {}
    found = {}
    for member, (trace, outputs) in traces.cuts.items():
        if id(trace) not in done:
            forms = training_table() if trace is traces.training else table()
            done[id(trace)] = decompose(trace, forms)
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
    for slot in optimizer_spec(recipe).slots:
        examples[slot.value_name] = torch.full(slot.shape, slot.initial)
    for name in recipe.added_names:
        examples[name] = examples[f"p.{name[2:]}"].clone()
    for name, value in hyperparameters_of(recipe.options, 0.1).items():
        examples[f"h.{name}"] = torch.tensor(value)
    examples |= {name: torch.from_numpy(array) for name, array in batch_values(batch).items()}
    return examples | {SEED: torch.tensor(1)}


def _apply_examples(recipe: Recipe, examples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kinds = ("o.", "h.", "a.", "c.")
    taken = {name: value for name, value in examples.items() if name.startswith(kinds)}
    parameters = {f"p.{name}": examples[f"p.{name}"] for name in recipe.parameters}
    gradients = {f"g.{name}": examples[f"p.{name}"].clone() for name in recipe.parameters}
    return {**parameters, **gradients, **taken}


def _results(recipe: Recipe) -> list[str]:
    return ["loss", *(f"m.{name}" for name in recipe.metrics)]
