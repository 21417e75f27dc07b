from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.author import compile_job
from coordinator.compiler.compiled_plan import CompiledPlan
from tests.network.distant_fleet import DistantFleet
from tests.network.link import Link, link, missing
from tests.system.fleet import Fleet
from tests.system.training import write_job

CLIENT = "ann"
JOB: dict[str, object] = {
    "count": 1,
    "cohort": 1,
    "quorum": 1,
    "deadline_seconds": 3600,
    "evaluate": {"every": 1, "on": ["coordinator"]},
}
MODEL = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(6, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 3)
        )
"""
"""Weights of five blocks, so that a transfer lasts and can break in its middle."""


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips, before anything is compiled, where there can be no link."""
    if why := missing():
        pytest.skip(why)


@pytest.fixture(scope="session")
def plan(namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> CompiledPlan:
    path = write_job(tmp_path_factory.mktemp("wide"), **JOB)
    (path.parent / "model.py").write_text(MODEL)
    return compile_job(path)


@pytest.fixture
def distant_link(namespaces: None) -> Iterator[Link]:
    """A link of the test's own."""
    with link() as made:
        yield made


@pytest.fixture
def distant_fleet(tmp_path: Path, plan: CompiledPlan, distant_link: Link) -> Iterator[DistantFleet]:
    """A fleet over that link; nothing is started."""
    fleet = DistantFleet(tmp_path, plan, distant_link)
    try:
        yield fleet
    finally:
        fleet.end()


@pytest.fixture(scope="session")
def calm_digests(plan: CompiledPlan, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The versions of the job on a loopback that nothing disturbs."""
    fleet = Fleet(tmp_path_factory.mktemp("calm"), plan)
    try:
        fleet.serve()
        fleet.client(CLIENT)
        job = fleet.submit(**JOB)
        fleet.finish(job)
        return fleet.digests(job)
    finally:
        fleet.end()
