"""A client of several ranks, as its processes."""

import signal
from typing import cast

from edge_client.program import run_client
from edge_client.ranks.place import RankPlace
from edge_client.runtime import choose_backend, choose_device, trainer_opener
from edge_client.settings import Settings
from headwater.errors import UsageError, require
from headwater.plan import Plan


def run_ranks(settings: Settings, place: RankPlace, *, verbose: bool = False) -> int:
    """Run this rank until the client ends; its exit code, 3 after another rank was lost.

    Each rank has a GPU of its own, or its part of the threads.

    Raises:
        UsageError: the ranks would not train with torch.
        RanksBrokenError: the other ranks are not there, or rank 0 is gone.
        HeadwaterError: the client cannot start.
    """
    if choose_backend(settings.trainer) != "torch":
        raise UsageError("a client of several ranks trains with torch: use --trainer torch")
    require("torch", extra="torch", purpose="train on several ranks")
    from edge_client.ranks.follower import Follower
    from edge_client.ranks.leader import Leader
    from edge_client.ranks.torch_group import RankGroup
    from edge_client.trainers.torch_trainer import TorchTrainer

    kind = choose_device("torch", settings.device)
    device = f"cuda:{place.local_rank}" if kind == "cuda" else kind
    opener = trainer_opener(
        "torch", threads=max(1, settings.threads // place.size), device=device,
        compile=settings.compile, precision=settings.precision,
    )  # fmt: skip

    def open_own(plan: Plan) -> TorchTrainer:
        return cast(TorchTrainer, opener(plan))

    if place.rank:
        # waiting for rank 0 goes on in native code, which no handler of Python's would leave
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        Follower(RankGroup(place, device), open_own).follow()
        return 0
    leader = Leader(RankGroup(place, device), open_own)
    try:
        return run_client(settings, verbose=verbose, open_trainer=leader.open, hear=leader.hear)
    finally:
        leader.close()
