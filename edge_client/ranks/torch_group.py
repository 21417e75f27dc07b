"""The ranks of one client, joined: commands from rank 0, and sums over all."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as distributed

from edge_client.ranks.message import Message
from edge_client.ranks.place import RankPlace
from headwater.errors import PlanError, UnavailableError

_JOIN_TIMEOUT = timedelta(minutes=5)
_IDLE_TIMEOUT = timedelta(days=365)
"""How long a rank waits for a command: rounds may be days apart. A rank 0 that ends is seen."""
STEP_TIMEOUT_SECONDS = 300.0
"""How long a rank waits for the others within a step: the first may load kernels or compile."""


class RanksBrokenError(UnavailableError):
    """A rank is gone, so these ranks cannot go on: they must be started again."""


class RankGroup:
    """The process group, from the launcher's environment; this rank computes on `device`.

    Commands go over Gloo, and so does a small sum in each step, which comes first: it finds a rank
    that is dead or failed before the gradients' all-reduce, NCCL on GPUs, could wait for it.

    Raises:
        RanksBrokenError: the ranks do not find each other.
    """

    def __init__(
        self, place: RankPlace, device: str, step_seconds: float = STEP_TIMEOUT_SECONDS
    ) -> None:
        self.rank, self.size = place.rank, place.size
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29500")
        limit = timedelta(seconds=step_seconds)
        with _in_our_words("the ranks do not find each other"):
            distributed.init_process_group(
                "gloo", init_method="env://", rank=place.rank, world_size=place.size,
                timeout=_JOIN_TIMEOUT,
            )  # fmt: skip
            self._commands = distributed.new_group(backend="gloo", timeout=_IDLE_TIMEOUT)
            self._small = distributed.new_group(backend="gloo", timeout=limit)
            if device.startswith("cuda"):
                torch.cuda.set_device(device)
            large = "nccl" if device.startswith("cuda") else "gloo"
            self._large = distributed.new_group(backend=large, timeout=limit)

    def send(self, rank: int, message: Message) -> None:
        """Give another rank a command.

        Raises:
            RanksBrokenError: it is gone.
        """
        data = torch.from_numpy(message.encode())
        with _in_our_words(f"rank {rank} is gone"):
            for tensor in (torch.tensor([data.numel()]), data):
                distributed.send(tensor, rank, group=self._commands)

    def receive(self) -> Message:
        """The next command of rank 0, whenever it comes.

        Raises:
            RanksBrokenError: rank 0 is gone.
        """
        length = torch.zeros(1, dtype=torch.int64)
        with _in_our_words("rank 0 is gone"):
            distributed.recv(length, 0, group=self._commands)
            data = torch.empty(int(length), dtype=torch.uint8)
            distributed.recv(data, 0, group=self._commands)
        return Message.decode(data.numpy())

    def agree(self, numbers: Sequence[float], error: Exception | None) -> list[float]:
        """The sums of `numbers` over all ranks, after every rank got so far.

        Raises:
            PlanError: another rank failed, with its reason. This rank's own error is raised again.
            RanksBrokenError: a rank is gone.
        """
        failed = [float(error is not None and rank == self.rank) for rank in range(self.size)]
        total = torch.tensor([*failed, *numbers], dtype=torch.float64)
        with _in_our_words("a rank is gone, or does not answer"):
            distributed.all_reduce(total, group=self._small)
        sums: list[float] = total.tolist()
        ranks = [rank for rank in range(self.size) if sums[rank]]
        if ranks:
            reason = self._reason(ranks[0], error)
            raise error or PlanError(f"rank {ranks[0]} of {self.size} failed: {reason}")
        return sums[self.size :]

    def add(self, tensor: torch.Tensor) -> None:
        """Replace a tensor on the device by its sum over all ranks.

        Raises:
            RanksBrokenError: a rank is gone.
        """
        with _in_our_words("a rank is gone, or does not answer"):
            distributed.all_reduce(tensor, group=self._large)

    def largest(self, tensor: torch.Tensor) -> None:
        """Replace a tensor on the device by its largest values over all ranks.

        Raises:
            RanksBrokenError: a rank is gone.
        """
        with _in_our_words("a rank is gone, or does not answer"):
            distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group=self._large)

    def _reason(self, rank: int, error: Exception | None) -> str:
        """What the failed rank says, told to all."""
        text = str(error).encode()[:1000] if rank == self.rank else b""
        data = torch.zeros(1000, dtype=torch.uint8)
        data[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        with _in_our_words("a rank is gone, or does not answer"):
            distributed.broadcast(data, rank, group=self._small)
        return bytes(data.tolist()).rstrip(b"\0").decode(errors="replace")


@contextmanager
def _in_our_words(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise RanksBrokenError(
            f"{what} ({reason}): start the client again, on all its devices"
        ) from error
