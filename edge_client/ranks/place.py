"""Which rank of how many this process is, as its launcher says in the environment."""

from collections.abc import Mapping
from dataclasses import dataclass

from headwater.errors import UsageError

_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
"""torchrun; Open MPI; MPICH, Intel MPI and others that speak PMI."""


@dataclass(frozen=True)
class RankPlace:
    """`0 <= rank < size`; `local_rank` counts the ranks of this machine, one for each device."""

    rank: int
    size: int
    local_rank: int


def rank_place(environment: Mapping[str, str]) -> RankPlace | None:
    """This process's place among several, or None where it is a client by itself.

    Raises:
        UsageError: the launcher's variables make no sense.
    """
    for rank, size, local in _LAUNCHERS:
        if rank in environment and size in environment:
            numbers = [environment[rank], environment[size], environment.get(local, "0")]
            if not all(text.isdigit() for text in numbers) or int(numbers[0]) >= int(numbers[1]):
                raise UsageError(
                    f"{rank}={numbers[0]} and {size}={numbers[1]} are no rank and number of ranks: "
                    "start the client with torchrun or mpirun, or unset them"
                )
            place = RankPlace(*map(int, numbers))
            return place if place.size > 1 else None
    return None
