import sys
from types import ModuleType

import numpy as np
import pytest

from headwater.batch import Batch
from headwater.errors import DataError, UsageError
from headwater.sources import open_source


class Ones:
    def __init__(self, path, options, inputs, targets):
        if path == "broken":
            raise KeyError("shelf")
        if path == "refused":
            raise DataError("ones: refused")
        self.name = f"ones:{path}"
        self.count = int(options["count"])

    def example_count(self):
        return self.count

    def batches(self, batch_size, seed):
        yield Batch((np.ones(self.count),), (np.ones(self.count),))


@pytest.fixture
def own_kind(tmp_path, monkeypatch):
    """An installed distribution that brings a kind of its own, as the import system finds it."""
    installed = tmp_path / "own-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[headwater.sources]\nones = own_ones:Ones\n")
    own = ModuleType("own_ones")
    own.Ones = Ones
    monkeypatch.setitem(sys.modules, "own_ones", own)
    monkeypatch.syspath_prepend(tmp_path)


def test_one_s_own_kind(own_kind):
    source = open_source("ones:shelf?count=3", [], [])
    assert (source.name, source.example_count()) == ("ones:shelf", 3)


def test_one_s_own_kind_that_fails(own_kind):
    with pytest.raises(DataError, match=r"data source .*Ones failed: KeyError: 'shelf'"):
        open_source("ones:broken?count=3", [], [])
    with pytest.raises(DataError, match=r"^ones: refused$"):
        open_source("ones:refused", [], [])


def test_a_scheme_that_is_not_installed(own_kind):
    with pytest.raises(UsageError, match=r"no data source 's3' is installed \(there are: digits:"):
        open_source("s3:bucket/x", [], [])


@pytest.mark.parametrize("name", ["gone.npz", "gone.csv", "gone.parquet", "gone"])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(DataError, match=f"{name}: there is no such file"):
        open_source(str(tmp_path / name), [], [])


def test_an_ending_of_no_kind(tmp_path):
    (tmp_path / "data.xlsx").touch()
    with pytest.raises(DataError, match=r"cannot tell the kind of data by the ending '\.xlsx'"):
        open_source(str(tmp_path / "data.xlsx"), [], [])


def test_folders_for_column_values(tmp_path):
    (tmp_path / "label=1").mkdir()
    (tmp_path / "label=1" / "a.parquet").touch()
    with pytest.raises(DataError, match=r"folders for column values \(label=1\) are not read"):
        open_source(str(tmp_path), [], [])


def test_what_the_system_does_not_let_us_read(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        open_source(str(tmp_path), [], [])
