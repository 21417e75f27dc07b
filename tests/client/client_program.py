"""A real client process whose trainer adds one: `client_program.py COORDINATOR STATE [stuck]`."""

import sys
from pathlib import Path

from edge_client.program import end_process, run_client
from edge_client.settings import Settings
from tests.client.fakes import AddingTrainer, Ones


def main() -> None:
    trainer, source = AddingTrainer(), Ones()
    if "stuck" in sys.argv:
        trainer.gate.clear()
    settings = Settings(
        coordinator=sys.argv[1],
        data={"ones": "ones:"},
        state=Path(sys.argv[2]),
        name="process",
        trainer="onnxruntime",
        threads=1,
        log_format="json",
    )
    end_process(run_client(settings, open_trainer=trainer.open, open_source=lambda *_: source))


main()
