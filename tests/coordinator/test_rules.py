"""What every rule of the table promises, and what the robust ones promise beyond that."""

import tracemalloc
from math import floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.aggregation import order_statistics
from coordinator.aggregation.order import Contribution
from coordinator.aggregation.order_statistics import Median, TrimmedMean
from coordinator.aggregation.rule import Rule, fold
from coordinator.aggregation.rules import RULES
from coordinator.aggregation.soundness import fault_of
from coordinator.aggregation.weighted_mean import WeightedMean
from headwater.errors import UpdateError
from headwater.layout import BLOCK_ELEMENTS, Layout, Role, TensorSpec, Weights
from headwater.update_encoder import UpdateEncoder
from headwater.updates import StoredUpdate
from tests.coordinator.stored_updates import EXACT, SMALL, stored, updates

CASES = [
    ("weighted_mean", {}),
    ("median", {}),
    *(("trimmed_mean", {"trim": trim}) for trim in (0.1, 0.2, 0.4)),
]
every_rule = pytest.mark.parametrize(
    "rule", [RULES[name].make(**settings) for name, settings in CASES], ids=str
)
robust_rules = pytest.mark.parametrize("rule", [Median(), TrimmedMean(0.4)], ids=str)
drawn = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ZEROS = Weights(np.zeros(8, np.float32), np.zeros(1, np.int64))


def wide(blocks: float) -> Layout:
    count = int(blocks * BLOCK_ELEMENTS)
    return Layout((TensorSpec("w", (count,), "float32", Role.TRAINABLE),))


def many(folder: Path, layout: Layout, count: int) -> list:
    """Updates of one layout, over many orders of magnitude."""
    made = []
    for seed in range(count):
        generator = np.random.default_rng(seed)
        change = generator.standard_normal(layout.float_count)
        change *= 2.0 ** generator.integers(-60, 60, layout.float_count)
        made.append(stored(folder, layout, change.astype(np.float32), 0, seed + 1))
    return made


def test_every_rule_of_the_table_is_tested_here() -> None:
    assert {name for name, _ in CASES} == set(RULES)
    for kind in RULES.values():
        assert kind.make(**kind.settings).refusal(1000) == ""


@every_rule
@drawn
@given(updates=updates, order=st.randoms(use_true_random=False), threads=st.integers(1, 5))
def test_any_order_and_any_number_of_threads_give_the_same_bits(
    rule: Rule, tmp_path, updates, order, threads
):
    contributions = [stored(tmp_path, SMALL, c, i, n) for i, (c, n) in enumerate(updates)]
    shuffled = order.sample(contributions, len(contributions))
    first = fold(rule, ZEROS, contributions, SMALL, 1)
    second = fold(rule, ZEROS, shuffled, SMALL, threads)
    assert first.floats.tobytes() == second.floats.tobytes()
    assert first.integers.tobytes() == second.integers.tobytes()
    assert (first.floats.dtype, first.floats.shape) == (np.float32, (8,))
    assert (first.integers.dtype, first.integers.shape) == (np.int64, (1,))


@every_rule
@drawn
@given(updates=updates)
def test_every_value_lies_between_those_of_the_updates(rule: Rule, tmp_path, updates):
    """So updates that are sound one by one are sound together."""
    contributions = [stored(tmp_path, SMALL, c, i, n) for i, (c, n) in enumerate(updates)]
    result = fold(rule, ZEROS, contributions, SMALL, 1).floats
    changes = np.stack([change for change, _ in updates])
    assert (changes.min(axis=0) <= result).all()
    assert (result <= changes.max(axis=0)).all()


def reference(rule: Rule, changes: np.ndarray, examples: list[int]) -> np.ndarray:
    """The rule in numpy's own words, float64 of shape [elements]."""
    changes = changes.astype(np.float64)
    if isinstance(rule, WeightedMean):
        return np.average(changes, axis=0, weights=examples)
    if isinstance(rule, Median):
        return np.median(changes, axis=0)
    assert isinstance(rule, TrimmedMean)
    cut = floor(len(changes) * rule.trim + 1e-9)
    return np.sort(changes, axis=0)[cut : len(changes) - cut].mean(axis=0)


@every_rule
@drawn
@given(updates=updates, counters=st.data())
def test_it_is_what_numpy_says(rule: Rule, tmp_path, updates, counters):
    sent = counters.draw(st.lists(st.integers(0, 9), min_size=len(updates), max_size=len(updates)))
    contributions = [
        stored(tmp_path, SMALL, change, counter, count)
        for (change, count), counter in zip(updates, sent, strict=True)
    ]
    base = Weights(np.linspace(-2, 2, 8, dtype=np.float32), np.array([5], np.int64))
    result = fold(rule, base, contributions, SMALL, 1)
    changes = np.stack([change for change, _ in updates])
    with np.errstate(over="ignore"):
        expected = (reference(rule, changes, [n for _, n in updates]) + base.floats).astype("f4")
    # What float64 loses where large changes cancel each other.
    lost = np.abs(changes.astype(np.float64)).max(axis=0) * 2.0**-48
    finite = np.isfinite(expected)
    assert (result.floats[~finite] == expected[~finite]).all()
    error = np.abs(result.floats.astype(np.float64) - expected)[finite]
    assert (error <= lost[finite] + 2.0**-23 * np.abs(expected[finite])).all()
    if isinstance(rule, WeightedMean):
        assert result.integers.tolist() == [max(5, *sent)]
    else:
        assert result.integers.tolist() == [sorted(sent)[(len(sent) - 1) // 2]]


@every_rule
def test_one_update_gives_the_trained_weights(rule: Rule, tmp_path):
    base = Weights(np.zeros(8, np.float32), np.zeros(1, np.int64))
    trained = Weights(np.linspace(0.1, 3, 8, dtype=np.float32), np.array([4], np.int64))
    path = tmp_path / "update"
    path.write_bytes(b"".join(UpdateEncoder(base, trained, SMALL, EXACT).frames()))
    one = Contribution("0" * 64, 17, StoredUpdate(path, SMALL, EXACT))
    result = fold(rule, base, [one], SMALL, 1)
    np.testing.assert_array_equal(result.floats, trained.floats)
    assert result.integers.tolist() == [4]
    assert rule.shares([17]) == [1.0]


@every_rule
def test_nothing_to_fold_is_an_error(rule: Rule):
    with pytest.raises(UpdateError, match="no update to fold"):
        fold(rule, ZEROS, [], SMALL, 1)


@every_rule
def test_an_overflow_of_the_fold_is_refused_and_not_hidden(rule: Rule, tmp_path):
    largest = np.finfo(np.float32).max
    base = Weights(np.full(8, largest, np.float32), np.zeros(1, np.int64))
    change = stored(tmp_path, SMALL, np.full(8, largest, np.float32), 0, 1)
    assert "not finite" in fault_of(fold(rule, base, [change], SMALL, 1), SMALL)


@every_rule
def test_blocks_and_tiles_are_shared_out_without_changing_a_bit(rule: Rule, tmp_path, monkeypatch):
    layout = wide(2.1)
    base = Weights(
        np.random.default_rng(9).standard_normal(layout.float_count).astype(np.float32),
        np.zeros(0, np.int64),
    )
    contributions = many(tmp_path, layout, 5)
    alone = fold(rule, base, contributions, layout, 1)
    monkeypatch.setattr(order_statistics, "TILE_BYTES", 100_003)
    together = fold(rule, base, contributions[::-1], layout, 4)
    assert alone.floats.tobytes() == together.floats.tobytes()


@robust_rules
def test_memory_is_bounded_by_the_tile_and_not_by_the_updates(rule: Rule, tmp_path, monkeypatch):
    layout = wide(1)
    contributions = many(tmp_path, layout, 30)
    base = Weights(np.zeros(layout.float_count, np.float32), np.zeros(0, np.int64))

    def peak_mib() -> float:
        tracemalloc.start()
        fold(rule, base, contributions, layout, 1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / 2**20

    assert peak_mib() > 30  # all updates of the block at once
    monkeypatch.setattr(order_statistics, "TILE_BYTES", 2**20)
    assert peak_mib() < 10


@robust_rules
def test_a_minority_moves_nothing_beyond_what_the_honest_sent(rule: Rule, tmp_path):
    """Two of five send anything and claim any number of examples; the mean follows them."""
    honest = [np.full(8, value, np.float32) for value in (1.0, 2.0, 3.0)]
    for worst in (1e30, -1e30):
        contributions = [
            *(stored(tmp_path, SMALL, change, 7, 1) for change in honest),
            stored(tmp_path, SMALL, np.full(8, worst, np.float32), 2**40, 10**6),
            stored(tmp_path, SMALL, np.full(8, worst / 2, np.float32), 2**41, 10**6),
        ]
        result = fold(rule, ZEROS, contributions, SMALL, 1)
        assert ((result.floats >= 1) & (result.floats <= 3)).all()
        assert result.integers.tolist() == [7]
        moved = fold(WeightedMean(), ZEROS, contributions, SMALL, 1)
        assert (np.abs(moved.floats) > 1e29).all()
    assert rule.shares([1, 1, 1, 10**6, 10**6]) == [0.2] * 5


@robust_rules
def test_claimed_examples_change_no_bit(rule: Rule, tmp_path):
    layout = wide(0.01)
    claimed = many(tmp_path, layout, 6)
    base = Weights(np.zeros(layout.float_count, np.float32), np.zeros(0, np.int64))
    equal = [Contribution(one.digest, 1, one.update) for one in claimed]
    first, second = (fold(rule, base, one, layout, 1) for one in (claimed, equal))
    assert first.floats.tobytes() == second.floats.tobytes()


@robust_rules
@pytest.mark.parametrize("signs", [(-0.0, 0.0, 0.0), (0.0, -0.0, -0.0), (-0.0, -0.0, -0.0)])
def test_the_sign_of_zero_depends_on_no_sort(rule: Rule, tmp_path, signs):
    """Equal to a sort, -0.0 and 0.0 would show in a base of -0.0."""
    base = Weights(np.full(8, -0.0, np.float32), np.zeros(1, np.int64))
    contributions = [
        stored(tmp_path, SMALL, np.full(8, zero, np.float32), at, 1)
        for at, zero in enumerate(signs)
    ]
    assert not np.signbit(fold(rule, base, contributions, SMALL, 1).floats).any()


@given(trim=st.floats(0, 0.5, exclude_min=True, exclude_max=True), updates=st.integers(1, 10**6))
def test_a_cut_leaves_something_and_is_refused_where_it_cuts_nothing(trim, updates):
    rule = TrimmedMean(trim)
    assert updates - 2 * rule.cut(updates) >= 1
    assert (rule.refusal(updates) == "") == (rule.cut(updates) > 0)


def test_a_cut_is_of_the_share_as_it_is_written():
    assert TrimmedMean(0.29).cut(100) == 29  # 0.29 * 100 is 28.999999999999996
    assert TrimmedMean(0.1).refusal(9) == (
        "0.1 of 9 updates cuts none: take a larger trim, or at least 10 updates"
    )
