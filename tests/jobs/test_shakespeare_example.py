import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from coordinator.jobs.job_file import read_job
from headwater.batch import Batch
from headwater.sources import open_source


@pytest.fixture
def prepare(pytestconfig: pytest.Config) -> ModuleType:
    path = pytestconfig.rootpath / "examples" / "shakespeare" / "prepare.py"
    spec = importlib.util.spec_from_file_location("shakespeare_prepare", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(path: Path, *speeches: tuple[str, str]) -> Path:
    speakers, texts = zip(*speeches, strict=True)
    parquet.write_table(pa.table({"speaker": speakers, "text": texts}), path)
    return path


def test_a_file_for_each_speaker_who_says_enough(
    tmp_path: Path, prepare: ModuleType, pytestconfig: pytest.Config
) -> None:
    source = written(
        tmp_path / "lines.parquet",
        ("KING RICHARD II", "ab, " * 200),
        ("Nurse", "Ay."),
        ("KING RICHARD II", "yz. " * 200),
        ("JULIET", "O é!" * 500),
    )
    counts = prepare.prepare(source, tmp_path / "parts")
    assert counts == {"juliet": 56, "king-richard-ii": 45, "held-out": 11}
    assert {file.stem for file in (tmp_path / "parts").iterdir()} == set(counts)

    model = read_job(pytestconfig.rootpath / "examples" / "shakespeare" / "job.toml").model
    (seen,), (wanted,) = model.input_signatures, model.target_signatures
    assert seen.text is not None
    table = seen.text.characters
    assert wanted.text == replace(seen.text, skip=1)
    assert len(table) == len(set(table)) == seen.maximum == 65

    def read(name: str) -> Batch:
        source = open_source(str(tmp_path / "parts" / name), [seen], [wanted])
        return next(source.batches(1000, None))

    king = read("king-richard-ii.npz")
    assert king.inputs[0].shape == king.targets[0].shape == (45, 32)
    text = "ab, " * 200 + "\n" + "yz. " * 200
    assert "".join(table[n] for n in king.inputs[0].ravel()) == text[: 45 * 32]
    assert "".join(table[n] for n in king.targets[0].ravel()) == text[1 : 45 * 32 + 1]
    juliet = read("juliet.npz")
    assert "".join(table[n] for n in juliet.inputs[0][0, :4]) == "O  !"


def test_nobody_says_enough(tmp_path: Path, prepare: ModuleType) -> None:
    source = written(tmp_path / "lines.parquet", ("Nurse", "Ay."))
    with pytest.raises(SystemExit, match=r"no speaker has 1,000 characters"):
        prepare.prepare(source, tmp_path / "parts")


def test_two_speakers_with_one_file(tmp_path: Path, prepare: ModuleType) -> None:
    source = written(tmp_path / "lines.parquet", ("A b", "x" * 1100), ("A-B", "x" * 1100))
    with pytest.raises(SystemExit, match=r"two speakers would share the file a-b\.npz"):
        prepare.prepare(source, tmp_path / "parts")
