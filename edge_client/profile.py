"""What a device says of itself, measured without importing a runtime."""

import os
import platform
import shutil
from pathlib import Path

from headwater.v1.fleet_pb2 import DeviceProfile

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def available_cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory, or the container's limit where that is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def measure_profile(state: Path, *, runtime: str, device: str, threads: int) -> DeviceProfile:
    """The device's profile; `state` is the folder whose disk holds cache and updates."""
    return DeviceProfile(
        runtime=runtime,
        device=device,
        cores=threads,
        memory_bytes=memory_bytes(),
        disk_free_bytes=shutil.disk_usage(state).free,
        platform=f"{platform.system().lower()} {platform.machine()}",
    )
