"""The thread that computes."""

import threading

import pytest

from edge_client.work_thread import WorkThread


async def test_calls_run_in_one_other_thread_in_order() -> None:
    thread = WorkThread()
    names = [await thread.run(threading.get_ident) for _ in range(3)]
    assert len(set(names)) == 1
    assert names[0] != threading.get_ident()
    thread.close()


async def test_what_a_call_raises_reaches_the_caller() -> None:
    thread = WorkThread()
    with pytest.raises(ValueError, match="invalid literal"):
        await thread.run(int, "x")
    assert await thread.run(int, "5") == 5
    thread.close()
