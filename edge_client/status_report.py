"""The status file as lines for people."""

from collections.abc import Iterator
from typing import Any

from edge_client.sizes import show_bytes


def status_lines(status: dict[str, Any], process_id: str | None) -> Iterator[str]:
    """One fact a line."""
    if process_id:
        yield f"running     process {process_id}"
    else:
        yield f"stopped     last seen {status['written_at']}"
    yield f"client      {status['client_id']} ({status['name']})"
    yield f"trainer     {status['trainer']} on {status['device']}"
    since = status["connected_since"]
    state = f"since {since}" if since and process_id else "not connected"
    yield f"coordinator {status['coordinator']}, {state}"
    yield "data        " + (", ".join(f"{k}={v}" for k, v in status["data"].items()) or "none")
    cache = status["cache"]
    yield f"cache       {show_bytes(cache['used_bytes'])} of {show_bytes(cache['budget_bytes'])}"
    yield "working on  " + _assignment(status["assignment"] if process_id else None)
    for entry in reversed(status["recent"]):
        yield "  " + _ended(entry)


def _assignment(work: dict[str, Any] | None) -> str:
    if work is None:
        return "nothing"
    return (
        f"{work['job']} round {work['round']}, assignment {work['assignment_id']}: "
        f"{work['phase']} {work['fraction']:.0%}"
    )


def _ended(entry: dict[str, Any]) -> str:
    parts = [f"{entry['ended_at']}  {entry['job']} round {entry['round']}: {entry['outcome']}"]
    if entry["reason"]:
        parts.append(f" ({entry['reason']})")
    if fate := entry["fate"]:
        parts.append(f", then {fate['state']}{', folded' if fate['folded'] else ''}")
    return "".join(parts)
