"""Buffers of a block's size are reused, not mapped and cleared anew."""

import platform
import resource
import subprocess
import sys

import pytest

from headwater.freed_memory import keep_freed_memory

BUFFERS = """
import resource
from headwater.freed_memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(300):
    one, other = bytes(1) * 2**20, bytes(1) * 2**20
    del one, other
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_blocks_come_from_memory_that_was_freed() -> None:
    def faults(keep: bool) -> int:
        program = [sys.executable, "-c", BUFFERS.format(keep=keep)]
        return int(subprocess.run(program, check=True, capture_output=True, text=True).stdout)

    pages = 300 * 2 * 2**20 // resource.getpagesize()
    assert faults(keep=True) < pages / 50


def test_a_c_library_that_is_not_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
