"""When a step is replayed, with a recorder that needs no GPU in the place of CUDA graphs."""

from collections.abc import Callable

import pytest
import torch

from edge_client.trainers.torch_replay import WARM_CALLS, Named, Replays

CPU = torch.device("cpu")


class Recorder:
    """Replays by calling the function again, into the results of its first call."""

    def __init__(self, able: bool = True) -> None:
        self.able = able
        self.captured = self.replayed = 0

    def __call__(self, run: Callable[[], Named]) -> tuple[Callable[[], None], Named] | None:
        self.captured += 1
        if not self.able:
            return None
        results = {name: torch.empty_like(value) for name, value in run().items()}

        def replay() -> None:
            self.replayed += 1
            for name, value in run().items():
                results[name].copy_(value)

        return replay, results


def scaled(values: Named) -> Named:
    return {"y": values["x"] * values["factor"]}


def call(replays: Replays, key: object, number: float, size: int = 2) -> list[float]:
    found = replays.run(key, scaled, {"x": torch.arange(float(size)), "factor": number})
    result: list[float] = found["y"].tolist()
    return result


def test_a_function_is_recorded_once_it_is_warm_and_then_takes_new_values() -> None:
    recorder = Recorder()
    replays = Replays(CPU, recorder)
    calls = 2 * WARM_CALLS
    assert [call(replays, "a", n / 2) for n in range(calls)] == [[0, n / 2] for n in range(calls)]
    assert (recorder.captured, recorder.replayed) == (1, calls - WARM_CALLS)


def test_keys_are_recorded_apart_and_none_is_never_recorded() -> None:
    recorder = Recorder()
    replays = Replays(CPU, recorder)
    for n in range(WARM_CALLS + 2):
        assert call(replays, 2, n) == [0, n]
        assert call(replays, 3, n, size=3) == [0, n, 2 * n]
        assert call(replays, None, n, size=n) == [n * one for one in range(n)]
    assert (recorder.captured, recorder.replayed) == (2, 4)


def test_what_cannot_be_recorded_runs_as_it_is_and_is_not_tried_again() -> None:
    recorder = Recorder(able=False)
    replays = Replays(CPU, recorder)
    assert [call(replays, "a", n) for n in range(9)] == [[0, n] for n in range(9)]
    assert (recorder.captured, recorder.replayed) == (1, 0)


def test_only_so_many_are_kept() -> None:
    recorder = Recorder()
    replays = Replays(CPU, recorder)
    for size in range(20):
        for n in range(WARM_CALLS + 1):
            assert call(replays, size, n, size) == [n * one for one in range(size)]
    assert recorder.captured == 6


def test_a_call_that_fails_leaves_nothing_behind() -> None:
    recorder = Recorder()
    replays = Replays(CPU, recorder)
    for n in range(WARM_CALLS + 1):
        call(replays, "a", n)
    with pytest.raises(RuntimeError, match="size of tensor"):
        call(replays, "a", 1.0, size=3)
    assert call(replays, "a", 1.0, size=3) == [0, 1, 2]
    assert recorder.captured == 1


def test_without_a_gpu_nothing_is_copied() -> None:
    x = torch.ones(3)
    found = Replays(CPU).run("a", lambda values: values, {"x": x, "seed": 2**40, "rate": 0.5})
    assert found["x"] is x
    assert (found["seed"].dtype, int(found["seed"])) == (torch.int64, 2**40)
    assert (found["rate"].dtype, float(found["rate"])) == (torch.float32, 0.5)
