"""The step for torch: the forward pass as torch has it, and the optimizer over whole vectors.

A device differentiates the forward pass by torch's own autograd. Its parameters lie in one vector
for each parameter group, so the optimizer's step is traced over such vectors, of whatever length:
they take the number of their group for a name, as in `p.0`, `g.0`, `o.momentum.0`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from coordinator.compiler import step as steps
from coordinator.compiler.optimizers.groups import ParameterGroup
from coordinator.compiler.step import Recipe
from coordinator.compiler.trace import TRACE_BATCH_SIZE, TracedStep, trace_forward
from coordinator.compiler.update import LEARNING_RATE, PROXIMAL, update
from headwater.aten_operators import IN_PLACE_OPERATORS, POINTWISE_OPERATORS, VIEW_OPERATORS
from headwater.batch import Array

Arrays = dict[str, Array]

_COMMUTATIVE = (torch.ops.aten.mul.Tensor, torch.ops.aten.maximum.default)


def trace_forwards(
    recipe: Recipe, examples: Mapping[str, Tensor], batched: Sequence[str]
) -> tuple[TracedStep, TracedStep]:
    """The forward pass in training and in evaluation; the model is left in training mode."""
    native = replace(recipe, eager=True)

    def step(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return steps.differentiable(native, tensors)

    training = trace_forward(step, examples, batched, recipe.model)
    recipe.model.eval()
    evaluation = trace_forward(step, examples, batched, recipe.model)
    recipe.model.train()
    return training, evaluation


def trace_apply(recipe: Recipe) -> TracedStep:
    """The optimizer's step over the vectors of the parameter groups."""
    groups = _vector_groups(recipe)
    vectors = {
        f"{kind}.{name}": torch.ones(TRACE_BATCH_SIZE)
        for kind in _kinds(recipe)
        for group in groups
        for name in group.names
    }
    scalars = {f"o.{name}": torch.zeros(()) for name in recipe.optimizer.scalars}
    rates = [LEARNING_RATE] if recipe.options.proximal is None else [LEARNING_RATE, PROXIMAL]
    traced = trace_forward(
        lambda tensors: update(groups, recipe.options, tensors),
        {**vectors, **scalars, **{name: torch.tensor(0.1) for name in rates}},
        list(vectors), recipe.model,
    )  # fmt: skip
    _reuse_memory(traced.module.graph)
    traced.module.recompile()
    return traced


class TorchForm:
    """The torch form's steps as functions of named arrays, run as a device runs them."""

    def __init__(self, recipe: Recipe, traces: Mapping[str, TracedStep]) -> None:
        self._kinds = _kinds(recipe)
        self._groups = {str(number): group.names for number, group in enumerate(recipe.groups)}
        self._traces = traces

    def gradients(self, feeds: Mapping[str, Array]) -> Arrays:
        """Forward and backward: `g.` of every parameter, buffers, loss and metrics."""
        values = _tensors(feeds)
        names = [name for group in self._groups.values() for name in group]
        leaves = [values[f"p.{name}"].requires_grad_() for name in names]
        results = self._run("forward.aten.json", values)
        found = torch.autograd.grad(
            results["loss"], leaves, allow_unused=True, materialize_grads=True
        )
        return _arrays(results | {f"g.{n}": v for n, v in zip(names, found, strict=True)})

    def apply(self, feeds: Mapping[str, Array]) -> Arrays:
        """`new.p.` of every parameter, computed over vectors."""
        values = _tensors(feeds)
        for group, names in self._groups.items():
            for kind in self._kinds:
                parts = [values[f"{kind}.{name}"].flatten() for name in names]
                values[f"{kind}.{group}"] = torch.cat(parts)
        results = self._run("apply.aten.json", values)
        found = {}
        for group, names in self._groups.items():
            sizes = [feeds[f"p.{name}"].size for name in names]
            pieces = torch.split(results[f"new.p.{group}"], sizes)
            for name, part in zip(names, pieces, strict=True):
                found[f"new.p.{name}"] = part.reshape(feeds[f"p.{name}"].shape)
        return _arrays(found)

    def evaluate(self, feeds: Mapping[str, Array]) -> Arrays:
        """Loss and metrics."""
        return _arrays(self._run("evaluate.aten.json", _tensors(feeds)))

    def _run(self, member: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        traced = self._traces[member]
        results = traced.module(*(values[name] for name in traced.inputs))
        return dict(zip(traced.outputs, results, strict=True))


def _reuse_memory(graph: fx.Graph) -> None:
    """Let elementwise operators write over a vector that the step made and needs no more: the
    optimizer's step is bound by memory."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if str(node.target) not in POINTWISE_OPERATORS or not node.args:
            continue
        if node.target in _COMMUTATIVE and not _is_free(node.args[0], node, order):
            node.args = (node.args[1], node.args[0], *node.args[2:])
            if not _is_free(node.args[0], node, order):
                node.args = (node.args[1], node.args[0], *node.args[2:])
        packet, _, overload = str(node.target).removeprefix("aten.").partition(".")
        if _is_free(node.args[0], node, order) and (
            f"aten.{packet}_.{overload}" in IN_PLACE_OPERATORS
        ):
            node.target = getattr(getattr(torch.ops.aten, f"{packet}_"), overload)


def _is_free(value: Any, user: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    """Whether `user` is the last to need a value of its own form, which an operator made."""
    return (
        isinstance(value, fx.Node)
        and str(value.target) in POINTWISE_OPERATORS - VIEW_OPERATORS | IN_PLACE_OPERATORS
        and max(value.users, key=order.__getitem__) is user
        and user.all_input_nodes.count(value) == 1
        and value.meta["val"].dtype == user.meta["val"].dtype
        and str(value.meta["val"].shape) == str(user.meta["val"].shape)
    )


def _vector_groups(recipe: Recipe) -> list[ParameterGroup]:
    return [replace(group, names=(str(number),)) for number, group in enumerate(recipe.groups)]


def _kinds(recipe: Recipe) -> list[str]:
    """What the step takes of each parameter: `p`, `g`, `o.SLOT`, by option `a` and `c`."""
    added = sorted({name[0] for name in recipe.added_names})
    return ["p", "g", *(f"o.{slot}" for slot in recipe.optimizer.slots), *added]


def _tensors(feeds: Mapping[str, Array]) -> dict[str, Tensor]:
    """Copies: the trace may write its inputs, which a device's form copies by itself."""
    return {name: torch.tensor(array) for name, array in feeds.items()}


def _arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}
