"""What a plan holds and costs, as data: operators, members, parameters, memory, operations, parity.

It reads the plan alone, so that anyone may explain a plan without the author's code.
"""

import json
from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from headwater.graph.onnx_view_pb2 import GraphView, ModelView
from headwater.manifest import Manifest
from headwater.plan import ReadablePlan

BATCH_SIZES = (1, 8, 32, 128)
_GRAPHS = (".onnx", ".json")
_TRAINING = {"onnx": ("train.onnx",), "torch": ("forward.aten.json", "apply.aten.json")}
"""The members that make up a training step; in torch the device makes the backward pass itself."""


def explain(plan: ReadablePlan) -> dict[str, Any]:
    """A plan's tables: `operators`, `members`, `parameters`, `costs`, `parity`.

    Operators are those of the training step in each form. Bytes are bytes, operations are
    floating-point ones of matrix products and convolutions in one training step.
    """
    manifest = plan.manifest
    counts = {
        member: _operators(member, plan.read(member))
        for member in manifest.members
        if member.endswith(_GRAPHS)
    }
    return {
        "name": manifest.name,
        "digest": plan.digest,
        "operators": [
            {"form": form, "operator": operator, "count": count}
            for form, members in _TRAINING.items()
            for operator, count in _most_frequent(sum((counts[m] for m in members), Counter()))
        ],
        "members": [
            {
                "member": name,
                "nodes": sum(counts[name].values()) if name in counts else None,
                "size_bytes": member.size_bytes,
            }
            for name, member in manifest.members.items()
        ],
        "parameters": _parameters(manifest),
        "costs": [_cost(manifest, size) for size in sorted({*BATCH_SIZES, manifest.batch_size})],
        "parity": _parity(manifest.parity),
    }


def _most_frequent(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def _operators(member: str, data: bytes) -> Counter[str]:
    if member.endswith(".onnx"):
        return _onnx_operators(ModelView.FromString(data).graph)
    return Counter(str(node[0]) for node in json.loads(data)["nodes"])


def _onnx_operators(graph: GraphView) -> Counter[str]:
    """Nodes by operator, those of graphs within a node included."""
    found = Counter(node.op_type for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                found += _onnx_operators(inner)
    return found


def _parameters(manifest: Manifest) -> list[dict[str, Any]]:
    """Tensors, elements and bytes by role, then the optimizer's state."""
    rows: dict[str, list[int]] = {}
    for spec in manifest.tensors:
        row = rows.setdefault(spec.role.value, [0, 0, 0])
        for place, amount in enumerate((1, spec.count, spec.count * np.dtype(spec.dtype).itemsize)):
            row[place] += amount
    slots = [prod(slot.shape) for slot in manifest.optimizer.slots]
    if slots:
        rows["optimizer state"] = [len(slots), sum(slots), 4 * sum(slots)]
    return [
        {"role": role, "tensors": tensors, "count": count, "size_bytes": size}
        for role, (tensors, count, size) in rows.items()
    ]


def _cost(manifest: Manifest, batch_size: int) -> dict[str, Any]:
    return {
        "batch_size": batch_size,
        "is_the_jobs": batch_size == manifest.batch_size,
        "peak_memory_bytes": manifest.step_memory_bytes(batch_size),
        "operations": manifest.operations.total(batch_size),
    }


def _parity(figures: Mapping[str, float]) -> list[dict[str, Any]]:
    """Distances from float64 torch, with the limit that the gate held them against."""
    factor, floor = figures.get("factor", 0.0), figures.get("floor", 0.0)
    rows = []
    for name, distance in figures.items():
        kind, _, quantity = name.partition(".")
        if kind == "graphs":
            own = figures.get(f"torch_float32.{quantity}", 0.0)
            limit = max(factor * own, floor)
            rows.append(
                {"quantity": quantity, "graphs": distance, "torch_float32": own, "limit": limit}
            )
    return rows
