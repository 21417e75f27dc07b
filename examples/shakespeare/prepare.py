"""Cut Shakespeare's lines into sequences: one file a speaker, and one held out.

    python prepare.py lines.parquet parts/

The Parquet file has the columns `speaker` and `text`, a speech a row. Each speaker with at least
1,000 characters becomes `parts/<speaker>.npz`, a client's data; the last tenth of each speaker's
sequences goes to `parts/held-out.npz`, the coordinator's. A file holds `text`, a sequence of 33
characters a row; the job file says how they become numbers.
"""

import argparse
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from numpy.typing import NDArray

SEQUENCE_CHARACTERS = 32
"""Characters to predict from; the one after each of them is in the sequence too."""

MINIMUM_CHARACTERS = 1_000
HELD_OUT = "held-out"
HELD_OUT_SHARE = 0.1

Sequences = NDArray[np.str_]


def sequences(text: str) -> Sequences:
    """Consecutive sequences of a text, each with the first character of the next."""
    starts = range(0, len(text) - SEQUENCE_CHARACTERS, SEQUENCE_CHARACTERS)
    return np.array([text[start : start + SEQUENCE_CHARACTERS + 1] for start in starts])


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
    parts: dict[str, Sequences] = {}
    held_out = []
    for speaker, text in texts_by_speaker(source).items():
        name = file_name(speaker)
        if name in parts:
            raise SystemExit(f"two speakers would share the file {name}.npz: rename {speaker!r}")
        found = sequences(text)
        kept = len(found) - max(1, round(len(found) * HELD_OUT_SHARE))
        parts[name] = found[:kept]
        held_out.append(found[kept:])
    if not parts:
        raise SystemExit(f"{source}: no speaker has {MINIMUM_CHARACTERS:,} characters")
    parts[HELD_OUT] = np.concatenate(held_out)
    for name, found in parts.items():
        np.savez_compressed(folder / f"{name}.npz", text=found)
    return {name: len(found) for name, found in parts.items()}


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
