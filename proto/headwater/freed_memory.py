"""Freed memory is kept for the next block instead of going back to the system."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the parameters' numbers in glibc's malloc.h
KEPT_BYTES = 16 * 2**20
"""For each thread, room for the buffers of a transfer; more than that still goes back."""
LARGEST_BUFFER_BYTES = 4 * 2**20
"""A block of float64 values and its neighbours; model-sized arrays are mapped as before."""


def keep_freed_memory() -> bool:
    """Ask the C library to reuse freed buffers; says whether it does.

    Updates and weights pass through buffers of a megabyte by the hundred. glibc by default maps
    such a buffer anew each time, and the kernel clears its pages: about a quarter of all
    processor time of a round with a large model. Other C libraries are left as they are.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - only glibc has it
    except (AttributeError, OSError, TypeError):
        return False
    mapped = library.mallopt(_MMAP_THRESHOLD, LARGEST_BUFFER_BYTES)
    return bool(mapped and library.mallopt(_TRIM_THRESHOLD, KEPT_BYTES))
