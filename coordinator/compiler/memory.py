"""Estimates a step's peak memory from the sizes of the tensors in its graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from coordinator.compiler.trace import TracedStep
from headwater.manifest import BatchCost

_VIEWS = {
    torch.ops.aten.view.default, torch.ops.aten.alias.default, torch.ops.aten.detach.default,
    torch.ops.aten.unsqueeze.default, torch.ops.aten.squeeze.dims, torch.ops.aten.clone.default,
}  # fmt: skip


def peak_memory(step: TracedStep, batch_size: int) -> BatchCost:
    """Bytes that are alive at once at most, as a line through two batch sizes.

    Every value lives from the node that makes it to the last one that uses it; inputs and outputs
    live throughout. Runtimes add their own buffers, and may reuse memory better.
    """
    return line(lambda size: _peak_bytes(step, size), batch_size)


def line(cost: Callable[[int], int], batch_size: int) -> BatchCost:
    """A cost by batch size as a line through `batch_size` and twice as many, rounded up."""
    one, two = cost(batch_size), cost(2 * batch_size)
    per_example = max(0, -(-(two - one) // batch_size))
    return BatchCost(fixed=max(0, one - per_example * batch_size), per_example=per_example)


def _peak_bytes(step: TracedStep, batch_size: int) -> int:
    nodes = list(step.module.graph.nodes)
    last_use: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            last_use[_owner(source)] = node
    ending: dict[fx.Node, list[fx.Node]] = {}
    for owner, node in last_use.items():
        if owner.op == "call_function":
            ending.setdefault(node, []).append(owner)
    live = peak = 0
    for node in nodes:
        live += _bytes(node, batch_size)
        peak = max(peak, live)
        if node.op != "output":
            live -= sum(_bytes(owner, batch_size) for owner in ending.get(node, []))
    return peak


def _owner(node: fx.Node) -> fx.Node:
    """Whose memory a value lies in: a view's is that of what it looks at, as long as it lives."""
    while node.target in _VIEWS:
        node = node.all_input_nodes[0]
    return node


def _bytes(node: fx.Node, batch_size: int) -> int:
    if node.target in _VIEWS or node.op == "output":
        return 0
    value = node.meta.get("val")
    return _tensor_bytes(value, batch_size) if isinstance(value, Tensor) else 0


def _tensor_bytes(value: Tensor, batch_size: int) -> int:
    count = value.element_size()
    for size in value.shape:
        count *= size_of(size, batch_size)
    return count


def size_of(size: Any, batch_size: int) -> int:
    """A size as a number, where a symbolic one stands for the batch."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, batch_size)))
