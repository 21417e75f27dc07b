"""What a round's clients measured, as one number a metric."""

from collections.abc import Iterable, Sequence
from math import isfinite, nan

from sqlalchemy.orm import Session

from coordinator.engine.live import JobRun
from storage import history
from storage.records import (
    AssignmentRecord,
    AssignmentState,
    MetricScope,
    MetricValue,
    RoundPurpose,
    RoundRecord,
)


def round_metrics(assignments: Iterable[AssignmentRecord]) -> list[MetricValue]:
    """Means over the accepted clients, weighted by examples.

    `train`: what they measured while they trained. `clients`: what the version that they were given
    scored on their data. Clients are taken in the order of their index, so that runs agree.
    """
    accepted = [one for one in assignments if one.state is AssignmentState.ACCEPTED]
    accepted.sort(key=lambda one: one.client_index)
    train = [(one.metrics_after, one.examples or 0) for one in accepted]
    clients = [(one.metrics_before, one.examples or 0) for one in accepted]
    return [*_means(MetricScope.TRAIN, train), *_means(MetricScope.CLIENTS, clients)]


def metric_series(session: Session, *, run: JobRun, metric: str, held_out: bool) -> list[float]:
    """The finite values of a job's metric by version.

    They are those of the coordinator's data with `held_out`, else what the clients measured of each
    version that they were given.
    """
    values: list[float] = []
    page: list[RoundRecord] | None = None
    while page is None or page:
        after = page[-1].id if page else None
        page = history.rounds(
            session, run.record.reference, purpose=RoundPurpose.TRAIN, after=after
        )
        for one in page:
            metrics = one.coordinator_metrics if held_out else one.client_metrics
            if isfinite(metrics.get(metric, nan)):
                values.append(metrics[metric])
    return values


def _means(
    scope: MetricScope, measured: Sequence[tuple[dict[str, float], int]]
) -> list[MetricValue]:
    means = []
    for name in sorted({name for metrics, _ in measured for name in metrics}):
        having = [(metrics[name], count) for metrics, count in measured if name in metrics]
        examples = sum(count for _, count in having)
        if examples > 0:
            total = sum(value * count for value, count in having)
            means.append(MetricValue(scope, name, total / examples, examples))
    return means
