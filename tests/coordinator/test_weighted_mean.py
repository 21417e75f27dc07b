"""The fold is a function of the set of updates: no order, interleaving or thread changes a bit."""

import io
import zlib
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.aggregation.order import Contribution
from coordinator.aggregation.rule import fold, fold_block
from coordinator.aggregation.soundness import fault_of
from coordinator.aggregation.staleness import discounted
from coordinator.aggregation.weighted_mean import WeightedMean, weighted_sum
from coordinator.services.upload import Upload
from headwater.errors import UpdateError
from headwater.layout import Layout, Weights
from headwater.updates import StoredUpdate, blocks_of, verified_frames
from tests.coordinator.stored_updates import EXACT, SMALL, stored, updates


def unsorted_fold(base: Weights, given_order: Sequence[Contribution], layout: Layout) -> bytes:
    """What the fold would give without the canonical sort."""
    result = Weights(np.empty_like(base.floats), base.integers.copy())
    for index, block in enumerate(blocks_of(layout)):
        fold_block(WeightedMean(), index, block, base, given_order, result)
    return result.floats.tobytes()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(updates=updates, order=st.randoms(use_true_random=False))
def test_any_interleaving_of_arriving_blocks_gives_the_same_bits(tmp_path, updates, order):
    """Updates that arrive at once, block by block in any order between them, fold to the same."""
    base = Weights(np.zeros(8, np.float32), np.zeros(1, np.int64))
    one_by_one = [stored(tmp_path, SMALL, c, i, n) for i, (c, n) in enumerate(updates)]
    with ExitStack() as stack:
        arriving = []
        for number, one in enumerate(one_by_one):
            upload = Upload(tmp_path / f"part-{number}", SMALL, EXACT, one.digest)
            stack.callback(upload.discard)
            content = (tmp_path / one.digest).read_bytes()
            arriving.append((upload, verified_frames(io.BytesIO(content), blocks_of(SMALL))))
        turns = [at for at in range(len(arriving)) for _ in blocks_of(SMALL)]
        for at in order.sample(turns, len(turns)):
            upload, payloads = arriving[at]
            payload = next(payloads)
            upload.append(zlib.crc32(payload), payload)
        together = []
        for (upload, _), one in zip(arriving, one_by_one, strict=True):
            upload.finish()
            update = StoredUpdate(upload.path, SMALL, EXACT)
            together.append(Contribution(one.digest, one.weight, update))
        with np.errstate(over="ignore"):
            assert (
                fold(WeightedMean(), base, together, SMALL, 2).floats.tobytes()
                == fold(WeightedMean(), base, one_by_one, SMALL, 1).floats.tobytes()
            )


def test_without_the_canonical_sort_the_order_shows(tmp_path):
    """The property above can fail: on the same kind of values, unsorted folds differ."""
    generator = np.random.default_rng(0)
    base = Weights(np.zeros(8, np.float32), np.zeros(1, np.int64))
    differing_sums = differing_weights = 0
    for _ in range(50):
        big = np.float32(2.0) ** generator.integers(40, 60, 8).astype(np.float32)
        changes = [big, -big, generator.standard_normal(8).astype(np.float32)]
        contributions = [stored(tmp_path, SMALL, one, 0, 1) for one in changes]
        forward, backward = contributions, [contributions[i] for i in (2, 0, 1)]
        sums = [weighted_sum(0, 6, one).tobytes() for one in (forward, backward)]
        differing_sums += sums[0] != sums[1]
        differing_weights += unsorted_fold(base, forward, SMALL) != unsorted_fold(
            base, backward, SMALL
        )
        assert fold(WeightedMean(), base, forward, SMALL, 1).floats.tobytes() == (
            fold(WeightedMean(), base, backward, SMALL, 1).floats.tobytes()
        )
    assert differing_sums > 25
    assert differing_weights > 25


def test_updates_without_examples_are_no_mean(tmp_path):
    base = Weights(np.ones(8, np.float32), np.array([5], np.int64))
    empty = stored(tmp_path, SMALL, np.ones(8, np.float32), 0, 0)
    with pytest.raises(UpdateError, match="no update with examples"):
        fold(WeightedMean(), base, [empty], SMALL, 1)


def test_the_mean_is_weighted_by_examples_and_counters_take_the_maximum(tmp_path):
    base = Weights(np.ones(8, np.float32), np.array([5], np.int64))
    contributions = [
        stored(tmp_path, SMALL, np.full(8, 1.0, np.float32), 7, 30),
        stored(tmp_path, SMALL, np.full(8, 5.0, np.float32), 9, 10),
    ]
    result = fold(WeightedMean(), base, contributions, SMALL, 1)
    np.testing.assert_array_equal(result.floats, np.full(8, 3.0, np.float32))
    assert result.integers.tolist() == [9]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, np.inf, "not finite in tensor 'layer.weight'"),
        (7, np.nan, "not finite in tensor 'norm.running_var'"),
        (6, 0.0, "variance 'norm.running_var' is not positive"),
        (6, -1.0, "variance 'norm.running_var' is not positive"),
    ],
)
def test_unsound_weights_are_named(place, value, message):
    floats = np.ones(8, np.float32)
    floats[place] = value
    assert message in fault_of(Weights(floats, np.zeros(1, np.int64)), SMALL)


def test_sound_weights_have_no_fault():
    floats = np.array([-1, 0, 1, -2, 0, 2, 0.5, 0.5], np.float32)
    assert fault_of(Weights(floats, np.zeros(1, np.int64)), SMALL) == ""


def test_an_overflow_of_the_fold_is_refused_and_not_hidden(tmp_path):
    largest = np.finfo(np.float32).max
    base = Weights(np.full(8, largest, np.float32), np.zeros(1, np.int64))
    change = stored(tmp_path, SMALL, np.full(8, largest, np.float32), 0, 1)
    assert "not finite" in fault_of(fold(WeightedMean(), base, [change], SMALL, 1), SMALL)


def test_shares_do_not_depend_on_the_order_of_the_updates() -> None:
    """Discounted weights have sums that depend on it, unless they are exact."""
    weights = [discounted(10 ** (at % 9) + at, at % 5) for at in range(40)]
    orders = (weights, weights[::-1], sorted(weights), weights[7:] + weights[:7])
    assert len({sum(order) for order in orders}) > 1, "a plain sum shows no order"
    rule = WeightedMean()
    shares = dict(zip(weights, rule.shares(weights), strict=True))
    for order in orders:
        assert rule.shares(order) == [shares[one] for one in order]
