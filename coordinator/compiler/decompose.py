"""Replaces the operators of a trace by those of a decomposition table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.experimental.proxy_tensor import (
    ProxyTorchDispatchMode,
    fetch_object_proxy,
    fetch_sym_proxy,
    get_proxy_mode,
    make_fx,
    track_tensor_tree,
)
from torch.types import py_sym_types
from torch.utils._pytree import tree_flatten, tree_unflatten

from coordinator.compiler.places import Stamper, part_of_node, place
from coordinator.compiler.trace import TracedStep, is_fixed, quietly
from headwater.errors import CompileError

Table = Mapping[Any, Callable[..., Any]]


def decompose(step: TracedStep, table: Table) -> TracedStep:
    """The same step in other operators; each has the place of the one that it came from.

    Raises:
        CompileError: a decomposition holds for one batch size only.
    """
    values = [node.meta["val"] for node in step.placeholders]
    mode = next(value.fake_mode for value in values)
    with quietly(), mode:
        interpreter = _Decomposing(step.module, table, step.open_sizes)
        traced = make_fx(
            lambda *tensors: interpreter.run(*tensors, enable_io_processing=False),
            decomposition_table=dict(table), tracing_mode="real", _allow_non_fake_inputs=True,
        )(*values)  # fmt: skip
    traced.graph.eliminate_dead_code()
    return TracedStep(traced, step.inputs, step.outputs)


class _Decomposing(fx.Interpreter):
    """Runs a graph under a tracer.

    Operators outside of the table stay as they are, with what the graph says of their results: to
    find shapes anew is most of the time that a trace takes.
    """

    def __init__(self, module: fx.GraphModule, table: Table, sizes: Sequence[torch.SymInt]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._stamper = Stamper()
        self._table = table
        self._sizes = sizes

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and stamp what it became."""
        is_operator = isinstance(n.target, OpOverload) and "val" in n.meta
        is_kept = is_operator and n.target not in self._table
        result = self._kept(n) if is_kept else super().run_node(n)
        self._stamper.stamp(part_of_node(n), n.meta.get("stack_trace"))
        if not is_kept and any(map(is_fixed, self._sizes)):
            raise CompileError(
                f"{n.target} {place(n)} runs along the batch in a form that fixes its size, and a "
                "plan runs with any: swap dimensions, or use another operator over dimension 0"
            )
        return result

    def _kept(self, node: fx.Node) -> Any:
        """The node once more, in the graph that is traced."""
        mode = get_proxy_mode()
        assert isinstance(mode, ProxyTorchDispatchMode)
        values, form = tree_flatten(self.fetch_args_kwargs_from_env(node))
        leaves = [_traced(value, mode.tracer) for value in values]
        if any(isinstance(leaf, Tensor) for leaf in leaves):
            return super().run_node(node)
        arguments = tree_unflatten(leaves, form)
        proxy = mode.tracer.create_proxy("call_function", node.target, *arguments)
        return track_tensor_tree(node.meta["val"], proxy, constant=None, tracer=mode.tracer)


def _traced(value: Any, tracer: Any) -> Any:
    """What stands for a value in a traced graph; a constant, which it lacks yet, is a tensor."""
    if isinstance(value, Tensor):
        found = fetch_object_proxy(tracer, value)
        return found if isinstance(found, Tensor) else found.proxy
    return fetch_sym_proxy(tracer)(value) if isinstance(value, py_sym_types) else value
