"""Who may take part in a round, and who is drawn."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.seeds import derived_seed
from coordinator.engine.selection import Candidate, ineligibility, select
from coordinator.jobs.where import parse_where

CANDIDATE = Candidate(
    client_id="a" * 32,
    name="device",
    attributes={"site": "north", "memory_gib": 4.0},
    example_counts={"digits": 100, "uncounted": -1, "nothing": 0},
    encodings=frozenset({"fp32"}),
)
ANYONE = parse_where("")


def named(number: int) -> Candidate:
    return replace(CANDIDATE, client_id=f"{number:032x}", name=f"client-{number:02}")


def test_a_client_with_the_data_set_is_eligible():
    assert ineligibility(CANDIDATE, "digits", ANYONE, "fp32") == ""
    assert ineligibility(CANDIDATE, "uncounted", ANYONE, "fp32") == ""


@pytest.mark.parametrize(
    ("candidate", "dataset", "where", "reason"),
    [
        (CANDIDATE, "cifar10", "", "no data set 'cifar10' (bound: digits, nothing, uncounted)"),
        (CANDIDATE, "nothing", "", "data set 'nothing' is empty"),
        (CANDIDATE, "digits", "site == 'south'", "where: site is 'north'"),
        (CANDIDATE, "digits", "memory_gib >= 8", "where: memory_gib is 4"),
        (replace(CANDIDATE, encodings=frozenset()), "digits", "", "encoding fp32"),
        (replace(CANDIDATE, busy_with="other"), "digits", "", "it works for job other"),
        (replace(CANDIDATE, barred="it failed its last"), "digits", "", "it failed its last"),
    ],
)
def test_why_a_client_cannot_take_part(candidate, dataset, where, reason):
    assert reason in ineligibility(candidate, dataset, parse_where(where), "fp32")


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**62), st.randoms())
def test_the_draw_depends_on_names_and_seed_and_not_on_the_order_of_arrival(
    present, count, seed, order
):
    clients = [named(number) for number in range(present)]
    drawn = select(clients, count, seed, 1)
    assert len(drawn) == min(count, present)
    assert len({one.client_id for one in drawn}) == len(drawn)
    shuffled = order.sample(clients, len(clients))
    assert select(shuffled, count, seed, 1) == drawn


def test_rounds_draw_different_cohorts():
    clients = [named(number) for number in range(30)]
    cohorts = {tuple(one.name for one in select(clients, 5, 1, number)) for number in range(20)}
    assert len(cohorts) > 15


def test_seeds_are_derived_from_their_parts_alone():
    assert derived_seed(1, "assignment", 2, 3) == derived_seed(1, "assignment", 2, 3)
    seeds = {
        derived_seed(s, "assignment", r, c) for s in range(5) for r in range(5) for c in range(5)
    }
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)
