"""Whether an offered update can be right: pure looks at what its client says of it."""

from collections.abc import Mapping

from coordinator.engine.live import JobRun, LiveAssignment
from coordinator.services.checks import is_digest
from headwater.encodings.names import encoding_named
from headwater.errors import UpdateError
from headwater.updates import maximum_update_bytes
from headwater.v1 import fleet_pb2
from storage.records import RoundPurpose

EXAMPLES_LIMIT = 2**40
SECONDS_LIMIT = 10 * 365 * 86400.0
METRICS_LIMIT = 64
METRIC_LIMIT = 1e100
"""The largest size of a metric: sums of metrics times examples must stay finite."""


def evaluates(run: JobRun, live: LiveAssignment) -> bool:
    """Whether the assignment brings metrics alone."""
    step = run.round
    if step is None or live.record.id not in step.assignments:
        return False
    return step.record.purpose is RoundPurpose.EVALUATE


def offer_fault(run: JobRun, live: LiveAssignment, request: fleet_pb2.OfferRequest) -> str:
    """Why an announced update cannot be right; empty where it can."""
    fault = summary_fault(request.summary)
    if fault:
        return fault
    if evaluates(run, live):
        return "it has an update; an evaluation brings metrics alone" if request.digest else ""
    encoding = live.record.update_encoding or "fp32"
    if request.encoding != encoding:
        return f"it is encoded as {request.encoding[:80]!r}; {encoding} was asked for"
    if not is_digest(request.digest):
        return f"its digest is {request.digest[:80]!r}, not 64 hexadecimal digits"
    largest = maximum_update_bytes(run.layout, encoding_named(request.encoding))
    if not 0 < request.size_bytes <= largest:
        return f"it has {request.size_bytes} bytes; an update of this plan has at most {largest}"
    return ""


def stale(live: LiveAssignment, request: fleet_pb2.OfferRequest) -> bool:
    """Whether the update was made for another coordinator or database: its base weights differ."""
    return request.base_weights_digest not in ("", live.base_weights_digest)


def check_norm(run: JobRun, norm: float) -> None:
    """Refuse a change that is larger than the job allows.

    Raises:
        UpdateError: it is.
    """
    largest = run.spec.rounds.largest_norm
    if largest is not None and not norm <= largest:
        raise UpdateError(
            f"its change has the norm {norm:.6g}; rounds.largest_norm allows {largest:g}"
        )


def summary_fault(summary: fleet_pb2.UpdateSummary) -> str:
    """Why what a device says of its training cannot be right; empty where it can."""
    fault = metrics_fault(summary.metrics_before) or metrics_fault(summary.metrics_after)
    if fault:
        return fault
    if not 0 < summary.examples <= EXAMPLES_LIMIT:
        return f"it claims {summary.examples} examples"
    for name in ("fetch_seconds", "train_seconds"):
        seconds = getattr(summary, name)
        if not 0 <= seconds < SECONDS_LIMIT:
            return f"it claims {seconds} {name}"
    for name in ("encoding_error", "residual_norm", "residual_age_rounds"):
        if not 0 <= getattr(summary, name) <= METRIC_LIMIT:
            return f"it claims an {name} of {getattr(summary, name)}"
    return ""


def metrics_fault(metrics: Mapping[str, float]) -> str:
    """Why measured metrics cannot be recorded; empty where they can."""
    if len(metrics) > METRICS_LIMIT:
        return f"it has {len(metrics)} metrics; at most {METRICS_LIMIT} are kept"
    for name, value in metrics.items():
        if not abs(value) <= METRIC_LIMIT:  # NaN too
            return f"its metric {name[:100]!r} is {value}"
        if len(name) > 100 or not name.isprintable():
            return "it has a metric whose name is too long or not printable"
    return ""
