"""A real client process with a gate: `gated_client.py COORDINATOR STATE NAME DATA GATE AT`.

AT is `train` (before each step) or `upload` (before the second frame). While the file GATE is
there, the client stays where it is; all else is the program that devices run.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from edge_client import transfer
from edge_client.program import end_process, run_client
from edge_client.runtime import trainer_opener
from edge_client.settings import Settings


def main() -> None:
    coordinator, state, name, data, gate, at = sys.argv[1:]
    open_trainer = trainer_opener("onnxruntime", threads=1, device="auto")
    closed = Path(gate).exists

    def opened(plan: Any) -> Any:
        trainer = open_trainer(plan)
        step: Callable[..., Any] = trainer.train_step

        def gated(*arguments: Any) -> Any:
            while at == "train" and closed():
                time.sleep(0.01)
            return step(*arguments)

        trainer.train_step = gated  # type: ignore[method-assign]
        return trainer

    messages = transfer._messages

    async def slow(*arguments: Any) -> AsyncIterator[Any]:
        sent = 0
        async for message in messages(*arguments):
            while at == "upload" and sent == 2 and closed():
                await asyncio.sleep(0.01)
            yield message
            sent += 1

    transfer._messages = slow
    settings = Settings(
        coordinator=coordinator,
        data={"clusters": data},
        state=Path(state),
        name=name,
        trainer="onnxruntime",
        threads=1,
    )
    end_process(run_client(settings, open_trainer=opened))


main()
