"""Counts the floating-point operations of a traced step, by torch's own formulas.

Counted are matrix products, convolutions and attention, forward and backward, a multiplication and
an addition being two: what a step's time goes into. Elementwise operators and sums are not.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from coordinator.compiler.memory import line, size_of
from coordinator.compiler.trace import TracedStep
from headwater.manifest import BatchCost


def operations(step: TracedStep, batch_size: int) -> BatchCost:
    """Operations of one step as a line in the batch size."""
    nodes = [node for node in step.module.graph.nodes if _formula(node) is not None]
    return line(lambda size: sum(_count(node, size) for node in nodes), batch_size)


def _formula(node: fx.Node) -> Any:
    if not isinstance(node.target, OpOverload):
        return None
    return flop_registry.get(node.target.overloadpacket)


def _count(node: fx.Node, batch_size: int) -> int:
    """The formulas take shapes in the place of tensors."""

    def shape(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return shape(value.meta["val"])
        if isinstance(value, Tensor):
            return torch.Size([size_of(size, batch_size) for size in value.shape])
        return size_of(value, batch_size) if isinstance(value, torch.SymInt) else value

    arguments = tree_map(shape, node.args)
    return int(_formula(node)(*arguments, out_val=tree_map(shape, node.meta["val"])))
