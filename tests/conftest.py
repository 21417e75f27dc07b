"""What every test has: a cache of its own, so that a run leaves nothing in the home directory."""

import os
import shutil
import tempfile

import pytest

_CACHE = "XDG_CACHE_HOME"
_folder = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """One folder for the run: the workers of a run and all that they start inherit it."""
    if not hasattr(config, "workerinput"):
        os.environ[_CACHE] = config.stash[_folder] = tempfile.mkdtemp(prefix="headwater-cache-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove it."""
    if _folder in config.stash:
        shutil.rmtree(config.stash[_folder], ignore_errors=True)
