"""When rounds open and close and jobs end: pure decisions with their reasons."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.policy import Action, closing, opening, stopping
from coordinator.jobs.job_spec import Rounds, Stop

POLICY = Rounds(count=3, cohort=4, quorum=3, over_selection=1.5, deadline_seconds=60.0)


def test_a_round_waits_for_its_quorum_and_says_who_is_missing():
    decision = opening(POLICY, eligible=2, attending=5)
    assert decision.offers == 0
    assert decision.reason == (
        "waits for 1 more eligible client: 2 of 5 attending can take part, the quorum is 3"
    )


@pytest.mark.parametrize(("eligible", "offers"), [(3, 3), (4, 4), (6, 6), (50, 6)])
def test_a_round_offers_the_cohort_times_the_over_selection(eligible, offers):
    assert opening(POLICY, eligible, eligible).offers == offers


def test_over_selection_is_not_rounded_up_by_binary_fractions():
    policy = Rounds(count=1, cohort=10, quorum=1, over_selection=1.1, deadline_seconds=60.0)
    assert opening(policy, 100, 100).offers == 11


@pytest.mark.parametrize(
    ("accepted", "pending", "passed", "action"),
    [
        (0, 4, False, Action.WAIT),
        (3, 1, False, Action.WAIT),
        (4, 2, False, Action.CLOSE),
        (3, 0, False, Action.CLOSE),
        (3, 1, True, Action.CLOSE),
        (2, 0, False, Action.ABANDON),
        (2, 2, True, Action.ABANDON),
        (0, 0, True, Action.ABANDON),
    ],
)
def test_how_a_round_ends(accepted, pending, passed, action):
    assert closing(POLICY, accepted, pending, passed).action is action


@given(st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_a_round_never_closes_below_its_quorum_nor_waits_for_nobody(accepted, pending, passed):
    decision = closing(POLICY, accepted, pending, passed)
    assert decision.reason
    if decision.action is Action.CLOSE:
        assert accepted >= POLICY.quorum
    if decision.action is Action.WAIT:
        assert pending > 0
        assert not passed


ACCURACY = Stop(metric="accuracy", patience=2, minimum_change=0.01, mode="max")


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.6, 0.7], False),
        ([0.5, 0.6, 0.6, 0.6], True),
        ([0.5, 0.6, 0.605, 0.609], True),
        ([0.5, 0.6, 0.605, 0.62], False),
        ([0.9, 0.1, 0.2], True),
    ],
)
def test_a_job_stops_when_its_metric_no_longer_improves(values, ends):
    assert bool(stopping(ACCURACY, values)) is ends


def test_less_is_better_for_a_loss():
    loss = Stop(metric="loss", patience=2, minimum_change=0.0, mode="min")
    assert stopping(loss, [3.0, 2.0, 1.0]) == ""
    assert "loss has not improved on 1 for 2" in stopping(loss, [1.0, 2.0, 1.5])


def test_without_a_stop_rule_all_rounds_are_run():
    assert stopping(None, [1.0] * 100) == ""
