"""How the assignments of a round end with it, and what their clients are told."""

from collections.abc import Mapping

from coordinator.engine import directives
from coordinator.engine.live import JobRun, LiveRound
from coordinator.engine.world import World
from storage.records import AssignmentState, Fate, RoundRecord


def fates_of(round_: LiveRound, cohort: int) -> dict[int, Fate]:
    """How the assignments end that are still pending when their round does."""
    complete = round_.accepted >= cohort
    state = AssignmentState.RELEASED if complete else AssignmentState.EXPIRED
    reason = "the cohort was complete" if complete else "the round ended before its update came"
    return {one.record.id: Fate(state, reason, bytes_down=one.bytes_down) for one in round_.pending}


def rejections(unsound: Mapping[int, str]) -> dict[int, Fate]:
    """How accepted assignments end whose updates the fold refused."""
    return {at: Fate(AssignmentState.REJECTED, reason) for at, reason in unsound.items()}


def part(world: World, run: JobRun, fates: Mapping[int, Fate], *, going_on: bool) -> None:
    """Part from clients that have not delivered; those who are late stay at work if `going_on`."""
    assert run.round is not None
    for live in run.round.pending:
        if (fate := fates.get(live.record.id)) is None:
            continue
        live.state = fate.state
        if going_on and fate.state is AssignmentState.EXPIRED:
            run.late[live.record.id] = live
        else:
            cancel = directives.cancel_message(live.record.id, fate.reason)
            world.attendance.tell(live.record.client_id, cancel)


def tell_fates(world: World, ended: LiveRound, record: RoundRecord) -> None:
    """Tell the clients whose updates a round accepted what became of them, by its ledger."""
    for one in record.assignments:
        live = ended.assignments.get(one.id)
        if live is not None and live.state is AssignmentState.ACCEPTED:
            is_folded = one.weight is not None
            fate = directives.fate_message(one.id, one.state, one.reason, folded=is_folded)
            world.attendance.tell(one.client_id, fate)
