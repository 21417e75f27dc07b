"""The parts of a client of several ranks that need no second process."""

import numpy as np
import pytest

from edge_client.ranks.follower import batch_from
from edge_client.ranks.leader import slices
from edge_client.ranks.message import Message
from edge_client.ranks.place import RankPlace, rank_place
from headwater.batch import Batch
from headwater.errors import UsageError
from headwater.values import batch_values


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, RankPlace(1, 4, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
        (
            {
                "OMPI_COMM_WORLD_RANK": "3",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            },
            RankPlace(3, 4, 1),
        ),
        ({"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0"}, RankPlace(0, 2, 0)),
    ],
)
def test_launchers_say_which_rank_this_is(
    environment: dict[str, str], expected: RankPlace | None
) -> None:
    assert rank_place(environment) == expected


@pytest.mark.parametrize("rank", ["4", "-1", "first"])
def test_a_rank_that_cannot_be_is_refused(rank: str) -> None:
    with pytest.raises(UsageError, match=f"RANK={rank} and WORLD_SIZE=4 are no rank"):
        rank_place({"RANK": rank, "WORLD_SIZE": "4"})


def test_messages_arrive_as_they_were() -> None:
    arrays = {
        "x0": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "w": np.ones(3, np.int64)[::2],
        "empty": np.zeros((0, 4), np.bool_),
    }
    found = Message.decode(Message("train", {"seed": 2**63 - 1}, arrays).encode())
    assert (found.command, found.values) == ("train", {"seed": 2**63 - 1})
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_a_message_cannot_hold_objects() -> None:
    with pytest.raises(ValueError, match="OBJECT array"):
        Message.decode(Message("x", {}, {"a": np.array([{}, {}])}).encode())


@pytest.mark.parametrize(("size", "expected"), [(7, [3, 2, 2]), (6, [2, 2, 2]), (1, [1, 0, 0])])
def test_slices_hold_every_example_once_and_rank_0_has_some(size: int, expected: list[int]) -> None:
    whole = Batch((np.arange(size), np.arange(size) * 2), (np.arange(size),))
    parts = slices(whole, 3)
    assert sorted((part.size for part in parts), reverse=True) == expected
    assert parts[0].size
    assert np.concatenate([part.inputs[0] for part in parts]).tolist() == list(range(size))


def test_a_batch_survives_its_names() -> None:
    whole = Batch(tuple(np.full(2, n) for n in range(12)), (np.ones(2),), np.zeros(2, np.float32))
    found = batch_from(batch_values(whole))
    assert [int(array[0]) for array in found.inputs] == list(range(12))
    assert found.weights is not None
