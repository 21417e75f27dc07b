"""When rounds open and close and jobs end: pure decisions with their reasons."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.policy import (
    Action,
    Closing,
    Progress,
    closing,
    guarding,
    opening,
    stopping,
)
from coordinator.jobs.job_spec import Guard, Rounds, Stop

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
    progress = Progress(accepted, pending, 0, 1.0 if passed else -1.0)
    assert closing(POLICY, progress).action is action


@given(
    st.builds(
        Progress, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9),
        st.floats(-100, 100), st.integers(0, 5),
    ),
    st.sampled_from(["abandon", "extend", "lower"]),
    st.sampled_from([0.0, 30.0]),
)  # fmt: skip
def test_a_round_always_has_a_next_step_that_its_policy_allows(progress, without_quorum, grace):
    progress = replace(progress, uploading=min(progress.uploading, progress.pending))
    policy = replace(POLICY, without_quorum=without_quorum, grace_seconds=grace)
    decision = closing(policy, progress)
    assert decision.reason
    match decision.action:
        case Action.CLOSE:
            assert progress.accepted >= (1 if without_quorum == "lower" else policy.quorum)
        case Action.WAIT:
            assert progress.pending > 0
            assert progress.past < (grace if progress.uploading else 0)
        case Action.EXTEND:
            assert without_quorum == "extend"
            assert progress.pending and progress.extensions < policy.extensions
        case Action.ABANDON:
            assert progress.accepted < policy.quorum


@pytest.mark.parametrize(
    ("policy", "progress", "action", "reason"),
    [
        ({"grace_seconds": 10.0}, Progress(3, 2, 1, 5.0), Action.WAIT,
         "1 uploads are under way at the deadline"),
        ({"grace_seconds": 10.0}, Progress(3, 2, 1, 10.0), Action.CLOSE,
         "3 accepted at the deadline"),
        ({"grace_seconds": 10.0}, Progress(3, 2, 0, 5.0), Action.CLOSE,
         "3 accepted at the deadline"),
        ({"without_quorum": "extend"}, Progress(1, 2, 0, 0.0, 1), Action.EXTEND,
         "1 accepted at the deadline, fewer than the quorum of 3: extension 2 of 3"),
        ({"without_quorum": "extend"}, Progress(1, 2, 0, 0.0, 3), Action.ABANDON,
         "1 accepted at the deadline, fewer than the quorum of 3"),
        ({"without_quorum": "extend"}, Progress(1, 0, 0, -9.0), Action.ABANDON,
         "1 accepted and no more can come, fewer than the quorum of 3"),
        ({"without_quorum": "lower"}, Progress(1, 2, 0, 0.0), Action.CLOSE,
         "1 accepted at the deadline, fewer than the quorum of 3, which is lowered"),
        ({"without_quorum": "lower"}, Progress(0, 2, 0, 0.0), Action.ABANDON,
         "0 accepted at the deadline, fewer than the quorum of 3"),
    ],
)  # fmt: skip
def test_what_a_policy_makes_of_a_deadline(policy, progress, action, reason):
    assert closing(replace(POLICY, **policy), progress) == Closing(action, reason)


GUARD = Guard(metric="accuracy", tolerance=0.05, mode="max")


@pytest.mark.parametrize(
    ("guard", "measured", "best", "reason"),
    [
        (None, {}, None, ""),
        (None, {"loss": 7.0}, None, ""),
        (None, {"loss": math.nan}, None, "the held-out loss of its model is nan"),
        (GUARD, {"loss": math.inf, "accuracy": 1.0}, None, "the held-out loss of its model is inf"),
        (GUARD, {"loss": 1.0, "accuracy": 0.2}, None, ""),
        (GUARD, {"loss": 1.0, "accuracy": 0.76}, 0.8, ""),
        (GUARD, {"loss": 1.0, "accuracy": 0.74}, 0.8,
         "the held-out accuracy of its model is 0.74, worse than the best so far, 0.8, by more "
         "than 0.05"),
        (GUARD, {"loss": 1.0, "accuracy": math.nan}, 0.8,
         "the held-out accuracy of its model is nan"),
        (GUARD, {}, 0.8, ""),
        (Guard(metric="loss", tolerance=0.5, mode="min"), {"loss": 2.0}, 1.0,
         "the held-out loss of its model is 2, worse than the best so far, 1, by more than 0.5"),
    ],
)  # fmt: skip
def test_what_a_new_version_must_not_lose(guard, measured, best, reason):
    assert guarding(guard, measured, best) == reason


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
