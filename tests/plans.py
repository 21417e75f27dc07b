"""Compiled plans of the zoo, each made once in a run and shared by the areas that need it."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from torch import nn

from coordinator.compiler.compile import compile_plan
from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.compiler.plan_cache import PlanCache
from headwater.plan import Plan
from tests.zoo import ZOO, Case


def compile_case(case: Case, name: str, **changed: object) -> CompiledPlan:
    """Compile a case of the zoo; `changed` replaces arguments of `compile_plan`."""
    arguments: dict[str, object] = {
        "loss": case.loss, "metrics": case.metrics, "optimizer": case.optimizer,
        "inputs": case.inputs, "targets": case.targets, "name": name, "batch_size": 8, "seed": 1,
    }  # fmt: skip
    model = changed.pop("model", None) or case.build()
    return compile_plan(model, **{**arguments, **changed})  # type: ignore[arg-type]


@cache
def compiled(name: str) -> CompiledPlan:
    """The plan of a zoo model, in memory; the workers of a run share a folder of them."""
    shared = PlanCache(Path(os.environ["XDG_CACHE_HOME"]) / "zoo")
    found = shared.read(name)
    if found:
        return CompiledPlan(*found)
    plan = compile_case(ZOO[name], name)
    shared.write(name, plan.manifest, plan.members)
    return plan


@cache
def batch_norm_plan() -> CompiledPlan:
    """A job of 20 features whose model has buffers and integers: updates of several blocks."""
    return compile_case(
        ZOO["mlp"],
        "job",
        model=nn.Sequential(nn.Linear(20, 5), nn.BatchNorm1d(5)),
        optimizer={"name": "sgd", "learning_rate": 0.1},
        metrics=["accuracy"],
    )


def opened(plan: CompiledPlan) -> Plan:
    """A compiled plan as a device sees it, without a file."""
    by_digest: Mapping[str, bytes] = {
        member.digest: plan.members[name] for name, member in plan.manifest.members.items()
    }
    return Plan.from_blobs(plan.manifest.to_bytes(), by_digest.__getitem__)
