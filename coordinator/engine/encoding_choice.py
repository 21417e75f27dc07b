"""Which encoding a client's update gets where its job leaves that open (`encoding = "auto"`)."""

from collections.abc import Collection
from dataclasses import dataclass

from coordinator.jobs.job_spec import AUTO
from headwater.encodings.names import encoding_named, parts_of
from headwater.layout import Layout
from headwater.updates import maximum_update_bytes

LADDER = ("fp32", "bf16", "int8+zstd", "int4+zstd", "topk:0.01+zstd")
"""From the finest to the coarsest."""

UNMEASURED = "int8+zstd"
"""The finest that a client gets whose link was not measured yet."""

UPLOAD_SHARE = 0.1
"""The part of a round's deadline that an upload may take: the rest is for fetching and training."""


@dataclass(frozen=True)
class Choice:
    """An encoding, and why it is that."""

    encoding: str
    reason: str


def encoding_of(
    wanted: str,
    known: Collection[str],
    layout: Layout,
    bytes_per_second: float | None,
    deadline_seconds: float,
    too_slow: str | None = None,
) -> Choice:
    """The encoding of one client's update.

    What the job says, unless that is `auto`: then the finest of `LADDER` that the client can write
    (`known`, of `headwater.encodings.names.PARTS`) and that its link carries in `UPLOAD_SHARE` of
    the deadline; the coarsest if none is small enough. `bytes_per_second` is None where its link
    was not measured. `too_slow` is the encoding of the client's last update, if that did not come
    in time: it gets a coarser one, since an upload that never ends is never measured.
    """
    if wanted != AUTO:
        return Choice(wanted, "as the job says")
    ladder = [one for one in LADDER if parts_of(one) <= set(known)] or ["fp32"]
    if too_slow in ladder:
        coarser = ladder[ladder.index(too_slow) + 1 :] or ladder[-1:]
        return Choice(coarser[0], f"its last update, in {too_slow}, did not come in time")
    if bytes_per_second is None:
        at = LADDER.index(UNMEASURED)
        fit = [one for one in ladder if LADDER.index(one) >= at] or ladder[-1:]
        return Choice(fit[0], "its link was not measured yet")
    seconds = UPLOAD_SHARE * deadline_seconds
    for one in ladder:
        needed = maximum_update_bytes(layout, encoding_named(one)) / bytes_per_second
        if needed <= seconds:
            return Choice(one, f"{needed:.3g} s of at most {seconds:.3g} at its link's pace")
    return Choice(ladder[-1], f"no encoding takes less than {seconds:.3g} s at its link's pace")
