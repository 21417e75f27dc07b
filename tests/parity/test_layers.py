"""Every layer trains on both runtimes as eager torch does, or is refused in stated words.

The names here are those of the tables in docs/plan.md.
"""

from functools import cache

import pytest

from headwater.errors import CompileError
from headwater.plan import Plan
from tests.parity.layers import LAYERS, REFUSED
from tests.parity.steps import BACKENDS, assert_trains_like_torch
from tests.plans import compile_case, opened

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning"),
]


@cache
def plan_of(name: str) -> Plan:
    return opened(compile_case(LAYERS[name].case(), "layer"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_trains_like_eager_torch(name: str, backend: str) -> None:
    assert_trains_like_torch(plan_of(name), LAYERS[name].case(), backend)


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_is_refused_in_these_words(name: str) -> None:
    layer, words = REFUSED[name]
    with pytest.raises(CompileError, match=words):
        compile_case(layer.case(), "layer")
