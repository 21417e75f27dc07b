import pytest

from headwater.errors import NotFoundError, UsageError
from storage import history
from storage.records import JobState, MetricScope, RoundPurpose
from tests.storage.world import World


@pytest.fixture
def past(world: World) -> World:
    """Two jobs: `digits` with three rounds, `letters` with none."""
    world.client("a")
    world.client("b")
    digits = world.job("digits")
    for number, accuracy in ((1, 0.5), (2, 0.9), (3, 0.7)):
        world.whole_round(digits, number, accuracy)
    world.job("letters")
    world.state("letters", JobState.CANCELLED)
    return world


def test_jobs_are_listed_newest_first(past: World) -> None:
    assert [j.reference for j in past.read(history.jobs)] == ["letters", "digits"]
    running = past.read(lambda s: history.jobs(s, states=[JobState.RUNNING]))
    assert [j.reference for j in running] == ["digits"]
    after = past.read(lambda s: history.jobs(s, limit=1, after=running[0].id + 1))
    assert after == running
    assert past.read(lambda s: history.job(s, "digits")).rounds_committed == 3


def test_rounds_are_paged_both_ways(past: World) -> None:
    every = past.read(lambda s: history.rounds(s, "digits"))
    assert [step.number for step in every] == [1, 2, 3]
    assert [step.coordinator_metrics["accuracy"] for step in every] == [0.5, 0.9, 0.7]
    assert every[0].assignments == ()
    more = past.read(lambda s: history.rounds(s, "digits", after=every[0].id, limit=1))
    assert more == [every[1]]
    last = past.read(lambda s: history.rounds(s, "digits", newest_first=True, limit=2))
    assert last == [every[2], every[1]]
    before = past.read(lambda s: history.rounds(s, "digits", newest_first=True, after=last[-1].id))
    assert before == [every[0]]
    evaluations = lambda s: history.rounds(s, "digits", purpose=RoundPurpose.EVALUATE)  # noqa: E731
    assert past.read(evaluations) == []


def test_a_round_has_its_ledger(past: World) -> None:
    step = past.read(lambda s: history.round(s, "digits", 2))
    assert [row.client_name for row in step.assignments] == ["a", "b"]
    assert {row.weight for row in step.assignments} == {0.5}
    assert step.version == 2 and step.base_version == 1


def test_clients_and_their_parts(past: World) -> None:
    assert [c.name for c in past.read(history.clients)] == ["a", "b"]
    assert [c.name for c in past.read(lambda s: history.clients(s, after="a"))] == ["b"]
    assert past.read(lambda s: history.client(s, "id-a")).name == "a"
    parts = past.read(lambda s: history.participation(s, "a", limit=2))
    assert [(part.job_reference, part.round_number) for part in parts] == [
        ("digits", 3),
        ("digits", 2),
    ]
    rest = past.read(lambda s: history.participation(s, "a", after=parts[-1].assignment.id))
    assert [part.round_number for part in rest] == [1]


def test_a_name_wins_over_an_id(past: World) -> None:
    past.client("id-a", "another")
    assert past.read(lambda s: history.client(s, "id-a")).client_id == "another"


def test_models_are_found_by_name_and_by_metric(past: World) -> None:
    names = [m.model for m in past.read(lambda s: history.models(s, "digits"))]
    assert names == ["digits@3", "digits@2", "digits@1", "digits@0"]
    by_accuracy = past.read(lambda s: history.models(s, best="accuracy"))
    assert [m.model for m in by_accuracy] == ["digits@2", "digits@3", "digits@1"]
    by_loss = past.read(lambda s: history.models(s, "digits", best="loss", limit=1))
    assert [m.model for m in by_loss] == ["digits@2"]
    assert by_loss[0].metrics["coordinator.accuracy"] == 0.9
    newest = past.read(lambda s: history.model(s, "digits"))
    assert (newest.model, newest.parent, newest.round_number) == ("digits@3", "digits@2", 3)
    assert past.read(lambda s: history.model(s, "letters")).metrics == {}


def test_events_tell_the_story(past: World) -> None:
    story = past.read(lambda s: history.events(s, "digits", newest_first=False))
    assert [event.kind for event in story[:4]] == [
        "job.submitted",
        "job.running",
        "round.opened",
        "round.committed",
    ]
    assert story[3].message == "round 1 was committed: 2 updates, 64 examples"
    assert story[3].round_number == 1
    rest = past.read(
        lambda s: history.events(s, "digits", newest_first=False, after=story[3].id, limit=1)
    )
    assert rest == [story[4]]
    newest = past.read(lambda s: history.events(s, limit=1))
    assert newest[0].message == "job letters is cancelled: test"
    older = past.read(lambda s: history.events(s, after=newest[0].id, limit=1))
    assert older[0].id < newest[0].id


def test_unknown_names_are_told_with_near_ones(past: World) -> None:
    def ask(work, message: str) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(NotFoundError, match=message):
            past.read(work)

    ask(lambda s: history.job(s, "digit"), "there is no job 'digit'; there is digits")
    ask(lambda s: history.rounds(s, "zzz"), "there is no job 'zzz'; there is digits, letters")
    ask(lambda s: history.round(s, "digits", 9), "no train round of job digits '9'; there is 1, 2")
    ask(lambda s: history.round(s, "letters", 1), "round of job letters '1': there is none yet")
    ask(lambda s: history.client(s, "c"), "there is no client 'c'; there is a, b")
    ask(lambda s: history.model(s, "digits@9"), "'digits@9'; there is digits@0 to digits@3")
    ask(
        lambda s: history.models(s, best="acuracy"),
        "the coordinator metric 'acuracy'; there is accuracy",
    )
    ask(lambda s: history.models(s, best="loss", scope=MetricScope.CLIENTS), "there is none yet")
    with pytest.raises(UsageError, match="write JOB@NUMBER, or JOB for its newest"):
        past.read(lambda s: history.model(s, "digits@best"))
