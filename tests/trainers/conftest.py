"""Plans of the zoo, as a device opens them."""

from collections.abc import Callable
from functools import cache

import pytest

from headwater.plan import Plan
from tests.plans import compiled, opened


@pytest.fixture(scope="session")
def plan_of() -> Callable[[str], Plan]:
    """Plans by their names in the zoo."""
    return cache(lambda name: opened(compiled(name)))
