"""Compiled plans of the zoo, each made once in a run."""

from collections.abc import Callable
from functools import cache

import pytest

from coordinator.compiler.compile import compile_plan
from headwater.plan import Plan
from tests.zoo import ZOO


@cache
def _compiled(name: str) -> Plan:
    case = ZOO[name]
    compiled = compile_plan(
        case.build(), case.loss, case.metrics, case.optimizer, case.inputs, case.targets,
        name=name, batch_size=6, seed=1,
    )  # fmt: skip
    return Plan(compiled.manifest.to_bytes(), compiled.members.__getitem__)


@pytest.fixture(scope="session")
def plan_of() -> Callable[[str], Plan]:
    """Plans by their names in the zoo."""
    return _compiled
