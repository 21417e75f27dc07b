"""Compiled plans of the zoo, each made once in a run and shared by the areas that need it."""

from collections.abc import Mapping
from functools import cache

from coordinator.compiler.compile import CompiledPlan, compile_plan
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
    """The plan of a zoo model, in memory."""
    return compile_case(ZOO[name], name)


def opened(plan: CompiledPlan) -> Plan:
    """A compiled plan as a device sees it, without a file."""
    by_digest: Mapping[str, bytes] = {
        member.digest: plan.members[name] for name, member in plan.manifest.members.items()
    }
    return Plan.from_blobs(plan.manifest.to_bytes(), by_digest.__getitem__)
