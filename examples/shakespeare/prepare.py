"""Cut Shakespeare's lines into sequences: one file a speaker, and one held out.

    python prepare.py lines.parquet parts/

The Parquet file has the columns `speaker` and `text`, a speech a row. Each speaker with at least
1,000 characters becomes `parts/<speaker>.npz`, a client's data; the last tenth of each speaker's
sequences goes to `parts/held-out.npz`, the coordinator's. A file holds `x` and `y`, int64
[sequences, 32]: characters by their number in the table `CHARACTERS`, and those that follow them.
"""

import argparse
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from numpy.typing import NDArray

CHARACTERS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The character table: a character's number is its place here. Others are read as spaces."""

SEQUENCE_CHARACTERS = 32
MINIMUM_CHARACTERS = 1_000
HELD_OUT = "held-out"
HELD_OUT_SHARE = 0.1

Sequences = NDArray[np.int64]


def encode(text: str) -> Sequences:
    """A text as numbers."""
    numbers = {character: number for number, character in enumerate(CHARACTERS)}
    return np.array([numbers.get(one, numbers[" "]) for one in text], np.int64)


def sequences(text: str) -> tuple[Sequences, Sequences]:
    """Consecutive sequences of a text, and the same moved on by one character."""
    codes = encode(text)
    count = (len(codes) - 1) // SEQUENCE_CHARACTERS
    end = count * SEQUENCE_CHARACTERS
    shape = (count, SEQUENCE_CHARACTERS)
    return codes[:end].reshape(shape), codes[1 : end + 1].reshape(shape)


def texts_by_speaker(path: Path) -> dict[str, str]:
    """All that each speaker says, of those who say enough."""
    table = parquet.read_table(path, columns=["speaker", "text"])
    speeches: dict[str, list[str]] = defaultdict(list)
    for row in table.to_pylist():
        speeches[row["speaker"]].append(row["text"])
    texts = {speaker: "\n".join(lines) for speaker, lines in sorted(speeches.items())}
    return {speaker: text for speaker, text in texts.items() if len(text) >= MINIMUM_CHARACTERS}


def file_name(speaker: str) -> str:
    """`KING RICHARD II` is in `king-richard-ii.npz`."""
    return re.sub(r"[^a-z0-9]+", "-", speaker.lower()).strip("-")


def prepare(source: Path, folder: Path) -> dict[str, int]:
    """Write all files and return the number of sequences in each."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, tuple[Sequences, Sequences]] = {}
    held_out = []
    for speaker, text in texts_by_speaker(source).items():
        name = file_name(speaker)
        if name in parts:
            raise SystemExit(f"two speakers would share the file {name}.npz: rename {speaker!r}")
        x, y = sequences(text)
        kept = len(x) - max(1, round(len(x) * HELD_OUT_SHARE))
        parts[name] = (x[:kept], y[:kept])
        held_out.append((x[kept:], y[kept:]))
    if not parts:
        raise SystemExit(f"{source}: no speaker has {MINIMUM_CHARACTERS:,} characters")
    parts[HELD_OUT] = tuple(map(np.concatenate, zip(*held_out, strict=True)))  # type: ignore[assignment]
    for name, (x, y) in parts.items():
        np.savez_compressed(folder / f"{name}.npz", x=x, y=y)
    return {name: len(x) for name, (x, _) in parts.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="lines.parquet")
    parser.add_argument("folder", type=Path, help="where the files go")
    arguments = parser.parse_args()
    counts = prepare(arguments.source, arguments.folder)
    print(f"{len(counts) - 1} speakers, {counts[HELD_OUT]:,} sequences held out; the largest:")
    for name, count in sorted(counts.items(), key=lambda one: -one[1])[:9]:
        print(f"  {name}.npz: {count:,} sequences of {SEQUENCE_CHARACTERS} characters")


if __name__ == "__main__":
    main()
