"""Generates the modules of every .proto file, or checks that the committed ones are fresh."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
WITH_SERVICES = sorted(ROOT.glob("headwater/v1/*.proto"))
MESSAGES_ONLY = sorted(ROOT.glob("headwater/graph/*.proto"))


def generate(output: Path) -> None:
    """Write all modules and their type stubs below `output`; raises SystemExit on a bad proto."""
    _protoc(output, [*WITH_SERVICES, *MESSAGES_ONLY], ["python", "mypy"])
    _protoc(output, WITH_SERVICES, ["grpc_python", "mypy_grpc"])


def _protoc(output: Path, protos: list[Path], kinds: list[str]) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    outputs = [f"--{kind}_out={'quiet:' if 'mypy' in kind else ''}{output}" for kind in kinds]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", *outputs]
    done = subprocess.run([*command, *map(str, protos)], env=environment, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def stale() -> list[str]:
    """The committed modules that differ from what the .proto files give today."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.relative_to(folder): path for path in Path(folder).rglob("*_pb2*")}
        return [
            str(name)
            for name, path in sorted(fresh.items())
            if not (ROOT / name).exists() or (ROOT / name).read_bytes() != path.read_bytes()
        ]


def main() -> None:
    """Generate into a folder, or with --check say which modules are stale and exit with 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", default=str(ROOT), type=Path)
    parser.add_argument("--check", action="store_true", help="only say which modules are stale")
    arguments = parser.parse_args()
    if not arguments.check:
        generate(arguments.output)
        return
    names = stale()
    if names:
        sys.exit(f"stale generated modules, run `make proto`: {', '.join(names)}")


if __name__ == "__main__":
    main()
