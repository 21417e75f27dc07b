"""What must hold of a job, its model versions and its rounds: pure checks of their rows."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from storage.findings import Finding, Place
from storage.records import JobState, RoundPurpose, RoundState
from storage.schema import Job, ModelVersion, Round
from storage.transitions import UNFINISHED_JOBS, UNFINISHED_ROUNDS


def job_findings(
    job: Job, versions: Sequence[ModelVersion], rounds: Sequence[Round]
) -> Iterator[Finding]:
    """What is wrong with a job, given all of its versions in order of number and its rounds."""
    place = Place(job.reference)
    trained = [one for one in rounds if one.purpose == RoundPurpose.TRAIN]
    yield from _state(place, job, rounds)
    yield from _counts(place, job, versions, trained)
    yield from _numbers(place, versions)
    yield from _parents(place, versions, {one.id: one for one in trained})
    yield from _commits(place, versions, trained)
    yield from _optimizer_states(place, job, versions)


def _state(place: Place, job: Job, rounds: Sequence[Round]) -> Iterator[Finding]:
    if job.state not in set(JobState):
        yield place.finding("job state", f"its state is {job.state!r}, which no job has")
        return
    ended = job.state not in UNFINISHED_JOBS
    if ended != (job.ended_at is not None):
        time = "no time when it ended" if ended else "a time when it ended"
        yield place.finding("job state", f"it is {job.state} and has {time}")
    under_way = [one.number for one in rounds if one.state in UNFINISHED_ROUNDS]
    if len(under_way) > 1:
        yield place.finding("job state", f"its rounds {_list(under_way)} have not ended, at once")
    # An operator's cancel is written before the round under way is abandoned.
    if under_way and ended and job.state != JobState.CANCELLED:
        yield place.finding(
            "job state", f"it is {job.state} and its round {under_way[0]} has not ended"
        )


def _counts(
    place: Place, job: Job, versions: Sequence[ModelVersion], trained: Sequence[Round]
) -> Iterator[Finding]:
    committed = sum(one.state == RoundState.COMMITTED for one in trained)
    counts = (
        ("rounds_committed", job.rounds_committed, committed),
        ("latest_version", job.latest_version, max((one.number for one in versions), default=0)),
        ("last_round_number", job.last_round_number, max((r.number for r in trained), default=0)),
    )
    for name, said, counted in counts:
        if said != counted:
            yield place.finding("job counts", f"its {name} is {said}; its rows say {counted}")


def _numbers(place: Place, versions: Sequence[ModelVersion]) -> Iterator[Finding]:
    found = {one.number for one in versions}
    missing = sorted(set(range(max(found, default=0) + 1)) - found)
    if missing:
        yield place.finding("version chain", f"its model versions lack {_list(missing)}")


def _parents(
    place: Place, versions: Sequence[ModelVersion], trained: Mapping[int, Round]
) -> Iterator[Finding]:
    """Each version after 0 comes from the one before, by a committed round that began there."""
    by_number = {one.number: one for one in versions}
    for version in versions:
        subject = f"version {version.number}"
        if version.number == 0:
            if version.round_id is not None:
                yield place.finding("version chain", f"{subject} has a round that made it")
            continue
        before = by_number.get(version.number - 1)
        if before is not None and version.parent_version_id != before.id:
            yield place.finding(
                "version chain", f"{subject} does not come from version {before.number}"
            )
        yield from _producer(place, subject, version, trained)


def _producer(
    place: Place, subject: str, version: ModelVersion, trained: Mapping[int, Round]
) -> Iterator[Finding]:
    step = trained.get(version.round_id or 0)
    if step is None:
        yield place.finding("version chain", f"{subject} has no training round that made it")
        return
    here = place.of_round(step)
    if step.state != RoundState.COMMITTED:
        yield here.finding("version chain", f"it made {subject} and is {step.state}")
    if step.base_version_id != version.parent_version_id:
        yield here.finding("version chain", f"it made {subject} and began from another version")


def _commits(
    place: Place, versions: Sequence[ModelVersion], trained: Sequence[Round]
) -> Iterator[Finding]:
    """Each committed training round made a version, and no two began from the same one."""
    known = {one.id for one in versions}
    made = Counter(one.round_id for one in versions)
    from_version = defaultdict(list)
    for step in trained:
        if step.state == RoundState.COMMITTED:
            from_version[step.base_version_id].append(step.number)
            if not made[step.id]:
                yield place.of_round(step).finding("commit", "it is committed and made no version")
    for base, rounds in from_version.items():
        if base not in known:
            yield place.finding("commit", f"round {rounds[0]} began from another job's version")
        if len(rounds) > 1:
            yield place.finding("commit", f"rounds {_list(rounds)} were committed from one version")


def _optimizer_states(
    place: Place, job: Job, versions: Sequence[ModelVersion]
) -> Iterator[Finding]:
    """The next round begins from the newest version's state; retention lets older ones go."""
    has_optimizer = bool((job.spec.get("aggregation") or {}).get("server_optimizer"))
    for version in versions:
        has_state = version.optimizer_state_digest is not None
        if has_state and (not has_optimizer or version.number == 0):
            yield place.finding(
                "optimizer state", f"version {version.number} has a state of no server optimizer"
            )
        if not has_state and has_optimizer and 0 < version.number == job.latest_version:
            yield place.finding(
                "optimizer state", f"version {version.number} lacks the server optimizer's state"
            )


def _list(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"
