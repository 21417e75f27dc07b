from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.author import compile_job
from coordinator.compiler.compiled_plan import CompiledPlan
from tests.postgresql import postgresql_server
from tests.s3 import s3_server
from tests.system.fleet import Fleet, FleetFactory, fleets
from tests.system.training import write_job

__all__ = ["postgresql_server", "s3_server"]


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> CompiledPlan:
    """The tiny plan, compiled once: jobs differ in their files alone."""
    return compile_job(write_job(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def new_fleet(tmp_path: Path, plan: CompiledPlan) -> Iterator[FleetFactory]:
    with fleets(tmp_path, plan) as make:
        yield make


@pytest.fixture
def fleet(new_fleet: FleetFactory) -> Fleet:
    """A coordinator of the test's own, serving, without clients."""
    fleet = new_fleet()
    fleet.serve("--lease-seconds", "4")
    return fleet


@pytest.fixture(scope="module")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory, plan: CompiledPlan) -> Iterator[Fleet]:
    """One coordinator for a module whose tests leave each other alone."""
    with fleets(tmp_path_factory.mktemp("shared"), plan) as make:
        fleet = make()
        fleet.serve("--lease-seconds", "4")
        yield fleet
