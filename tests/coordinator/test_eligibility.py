"""Why a client is not used is one reason over all jobs, written when it changes."""

from coordinator.engine.eligibility import Eligibility


def test_what_was_noted_before_a_restart_is_written_anew_even_where_there_is_no_reason():
    eligibility = Eligibility()
    assert eligibility.changes("a", {"x": ""}, {}) == {"x": None}
    eligibility.noted({"x": None})
    assert eligibility.changes("a", {"x": ""}, {}) == {}


def test_a_client_that_some_job_can_use_has_no_reason():
    eligibility = Eligibility()
    eligibility.noted(eligibility.changes("a", {"x": "where: site is 'south'"}, {}))
    assert eligibility.changes("b", {"x": ""}, {}) == {"x": None}
    eligibility.noted({"x": None})
    assert eligibility.changes("a", {"x": "where: site is 'south'"}, {}) == {}


def test_reasons_of_several_jobs_do_not_take_turns():
    eligibility = Eligibility()
    eligibility.noted(eligibility.changes("a", {"x": "no data set"}, {}))
    first = eligibility.changes("b", {"x": "where: too small"}, {})
    assert first == {"x": "no data set (job a, and others)"}
    eligibility.noted(first)
    assert eligibility.changes("a", {"x": "no data set"}, {}) == {}
    assert eligibility.changes("b", {"x": "where: too small"}, {}) == {}


def test_a_client_that_works_is_in_use_and_an_ended_job_has_nothing_against_it():
    eligibility = Eligibility()
    assert eligibility.changes("a", {"x": "it works for job b"}, {"x": "b"}) == {"x": None}
    eligibility.noted({"x": None})
    eligibility.noted(eligibility.changes("a", {"x": "no data set"}, {}))
    eligibility.forget("a")
    assert eligibility.changes("b", {"x": ""}, {}) == {"x": None}
