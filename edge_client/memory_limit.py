"""Keeps a plan from taking more memory than the device has, whatever it declares.

A graph that asks for 100 GB then fails in its runtime's allocation, and so as one assignment with
its reason, instead of having the operating system kill the client or something else.
"""

import sys
from pathlib import Path

SPARE_BYTES = 2**30
"""Above the limit: threads reserve stacks that they never touch, and those are counted as well."""

_STATUS = Path("/proc/self/status")


def limit_memory(limit_bytes: int) -> None:
    """Let this process's own memory grow to this many bytes and a little more.

    In force on Linux; elsewhere nothing happens. A limit that was set before and is lower stays.
    """
    if not sys.platform.startswith("linux"):
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [one for one in (soft, hard) if one != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limit_bytes + SPARE_BYTES, *limits, 2**62), hard))


def peak_memory_bytes() -> int | None:
    """The most memory that this process has had so far; None where the system does not say."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kilobytes is None else int(kilobytes) * 1024
