"""Why clients are not used now, over all jobs: what the database notes of each client."""

from collections.abc import Mapping

_NEVER_NOTED = object()


class Eligibility:
    """The reasons that jobs have against the attending clients. Used on the event loop only.

    A client that some job could use has no reason noted; one that works for a job is in use.
    """

    def __init__(self) -> None:
        self._by_job: dict[str, dict[str, str]] = {}
        self._noted: dict[str, object] = {}

    def changes(
        self, job: str, reasons: Mapping[str, str], busy: Mapping[str, str]
    ) -> dict[str, str | None]:
        """What to write after a job looked at the clients: for each that changed, why it is unused.

        `reasons` maps the attending clients to the job's reason, empty where it could use them.
        """
        self._by_job[job] = {one: "" if one in busy else why for one, why in reasons.items()}
        changed: dict[str, str | None] = {}
        for client in reasons:
            reason = self._reason(client)
            if self._noted.get(client, _NEVER_NOTED) != reason:
                changed[client] = reason
        return changed

    def noted(self, changes: Mapping[str, str | None]) -> None:
        """These were written."""
        self._noted.update(changes)

    def forget(self, job: str) -> None:
        """The job has ended; its reasons no longer count."""
        self._by_job.pop(job, None)

    def _reason(self, client: str) -> str | None:
        against = {job: of[client] for job, of in sorted(self._by_job.items()) if client in of}
        if not against or "" in against.values():
            return None
        job, reason = next(iter(against.items()))
        return reason if len(against) == 1 else f"{reason} (job {job}, and others)"
