"""What every test has: a cache of its own, so that a run leaves nothing in the home directory."""

import os
import shutil
import tempfile

import pytest

from edge_client.profile import available_cores

_CACHE = "XDG_CACHE_HOME"
_folder = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """One folder for the run: the workers of a run and all that they start inherit it."""
    if not hasattr(config, "workerinput"):
        os.environ[_CACHE] = config.stash[_folder] = tempfile.mkdtemp(prefix="headwater-cache-")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than processors: tests of whole systems spend a part of their time waiting."""
    return available_cores() + 1


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it."""
    if _folder in config.stash:
        shutil.rmtree(config.stash[_folder], ignore_errors=True)
