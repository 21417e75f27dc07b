from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import UsageError
from headwater.sources.order import check_batch_size, example_order, regroup, seeded, shuffle_stream


def chunks(lengths):
    ends = np.cumsum([0, *lengths])
    return [(np.arange(a, b),) for a, b in pairwise(ends) if b > a]


def joined(pieces):
    return [int(n) for piece in pieces for n in piece[0]]


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 20))
def test_regrouping_keeps_order_and_sizes(lengths, batch_size):
    pieces = list(regroup(chunks(lengths), batch_size))
    assert joined(pieces) == list(range(sum(lengths)))
    assert all(len(piece[0]) == batch_size for piece in pieces[:-1])


@given(st.lists(st.integers(1, 5), max_size=20), st.integers(5, 40), st.integers(0, 2**64))
def test_a_shuffled_stream_has_every_example_once_in_the_seed_s_order(lengths, capacity, seed):
    first, again = (
        joined(shuffle_stream(chunks(lengths), capacity, seeded(seed))) for _ in range(2)
    )
    assert first == again
    assert sorted(first) == list(range(sum(lengths)))


def test_other_seeds_give_other_orders():
    orders = {tuple(joined(shuffle_stream(chunks([5] * 20), 30, seeded(s)))) for s in range(20)}
    assert len(orders) == 20


def test_the_pool_holds_no_more_than_its_capacity():
    held = 0

    def arriving():
        nonlocal held
        for chunk in chunks([10] * 100):
            held += len(chunk[0])
            assert held <= 50 + 10
            yield chunk

    for piece in shuffle_stream(arriving(), 50, seeded(1)):
        held -= len(piece[0])
    assert held == 0


def test_orders_in_memory():
    assert example_order(5, None).tolist() == [0, 1, 2, 3, 4]
    assert example_order(50, 3).tolist() == example_order(50, 3).tolist()
    assert example_order(50, 3).tolist() != example_order(50, 4).tolist()
    assert sorted(example_order(50, -3)) == list(range(50))


def test_a_batch_has_an_example():
    with pytest.raises(UsageError, match="batch size 0 must be at least 1"):
        check_batch_size(0)
