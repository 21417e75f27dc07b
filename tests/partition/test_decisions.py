import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import UsageError
from headwater.partitioning import (
    dirichlet_parts,
    held_out,
    iid_parts,
    label_counts,
    shard_parts,
    value_parts,
)

labels_of = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(np.array)
seeds = st.integers(0, 2**64)


def assert_exact_cover(parts, count):
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    assert all(len(part) and (np.diff(part) > 0).all() for part in parts)


def assert_equal_sizes(parts):
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@given(st.integers(1, 300), st.data(), seeds)
def test_iid_is_an_exact_cover_that_the_seed_reproduces(count, data, seed):
    number = data.draw(st.integers(1, count))
    parts = iid_parts(count, number, seed)
    assert len(parts) == number
    assert_exact_cover(parts, count)
    assert_equal_sizes(parts)
    assert_same(parts, iid_parts(count, number, seed))


@given(labels_of, st.data(), st.floats(1e-6, 1e6), seeds)
def test_dirichlet_is_an_exact_cover_without_empty_parts(labels, data, alpha, seed):
    number = data.draw(st.integers(1, len(labels)))
    parts = dirichlet_parts(labels, number, alpha, seed)
    assert len(parts) == number
    assert_exact_cover(parts, len(labels))
    assert_equal_sizes(parts)
    assert_same(parts, dirichlet_parts(labels, number, alpha, seed))


@given(labels_of, st.data(), seeds)
def test_shards_are_an_exact_cover(labels, data, seed):
    number = data.draw(st.integers(1, len(labels)))
    shards = data.draw(st.integers(1, len(labels) // number))
    parts = shard_parts(labels, number, shards, seed)
    assert len(parts) == number
    assert_exact_cover(parts, len(labels))
    assert_same(parts, shard_parts(labels, number, shards, seed))


@given(st.lists(st.text(max_size=3), min_size=1, max_size=60))
def test_values_are_an_exact_cover(values):
    parts = value_parts(np.array(values, object))
    assert_exact_cover(list(parts.values()), len(values))
    assert {value: {values[row] for row in rows} for value, rows in parts.items()} == {
        value: {value} for value in set(values)
    }


@given(labels_of, st.floats(0.01, 0.99), seeds)
def test_held_out_rows_are_stratified(labels, fraction, seed):
    total = round(len(labels) * fraction)
    if not 0 < total < len(labels):
        with pytest.raises(UsageError, match="leaves one side empty"):
            held_out(labels, fraction, seed)
        return
    rows = held_out(labels, fraction, seed)
    assert len(rows) == total == len(set(rows))
    for label in np.unique(labels):
        share = (labels == label).sum() * total / len(labels)
        assert abs((labels[rows] == label).sum() - share) < 1 + 1e-9
    np.testing.assert_array_equal(rows, held_out(labels, fraction, seed))


def test_held_out_rows_without_labels():
    assert len(held_out(100, 0.2, 1)) == 20


def concentration(parts, labels):
    """The mean share of a part's commonest label."""
    return np.mean([np.bincount(labels[part]).max() / len(part) for part in parts])


def test_alpha_goes_from_few_labels_to_iid():
    labels = np.repeat(np.arange(10), 500)
    shares = [
        concentration(dirichlet_parts(labels, 20, alpha, 1), labels)
        for alpha in (0.01, 0.5, 5, 1000)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.7
    assert shares[-1] < 0.15


def test_two_shards_hold_few_labels():
    labels = np.repeat(np.arange(10), 100)
    parts = shard_parts(np.random.default_rng(0).permutation(labels), 10, 2, 1)
    assert all(len(part) == 100 for part in parts)
    shuffled = np.random.default_rng(0).permutation(labels)
    assert all(len(np.unique(shuffled[part])) <= 2 for part in parts)


@pytest.mark.parametrize(
    "decide",
    [
        lambda seed: iid_parts(100, 4, seed),
        lambda seed: dirichlet_parts(np.arange(100) % 5, 4, 0.5, seed),
        lambda seed: shard_parts(np.arange(100) % 5, 4, 2, seed),
        lambda seed: [held_out(np.arange(100) % 5, 0.3, seed)],
    ],
)
def test_other_seeds_give_other_parts(decide):
    assert len({np.concatenate(decide(seed)).tobytes() for seed in range(10)}) == 10


@pytest.mark.parametrize(
    ("decide", "message"),
    [
        (lambda: iid_parts(3, 4, 0), "3 examples cannot fill 4 parts"),
        (lambda: iid_parts(3, 0, 0), "number of parts 0 must be at least 1"),
        (lambda: dirichlet_parts(np.zeros(3), 4, 0.5, 0), "3 examples cannot fill 4 parts"),
        (lambda: dirichlet_parts(np.zeros(3), 2, 0, 0), "alpha 0 must be a positive number"),
        (lambda: dirichlet_parts(np.zeros(3), 2, float("nan"), 0), "alpha nan must be"),
        (lambda: shard_parts(np.zeros(3), 2, 2, 0), "3 examples cannot fill 4 shards"),
        (lambda: shard_parts(np.zeros(3), 2, 0, 0), "shards per part 0 must be at least 1"),
        (lambda: value_parts(np.array([])), "0 examples cannot fill 1 parts"),
        (lambda: held_out(10, 1.5, 0), "fraction of 1.5"),
    ],
)
def test_what_cannot_be_split(decide, message):
    with pytest.raises(UsageError, match=message):
        decide()


def test_label_counts_are_in_the_labels_order():
    assert list(label_counts(np.array([10, 9, 9])).items()) == [("9", 2), ("10", 1)]
