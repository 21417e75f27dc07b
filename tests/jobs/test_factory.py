import sys
from pathlib import Path

import pytest
from torch import nn

from coordinator.jobs.factory import JobCode
from headwater.errors import CompileError

MODEL = """\
from torch import nn
class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(width, 1)
"""


def folder_with(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def fault(folder: Path, reference: str = "model:Net") -> str:
    with pytest.raises(CompileError) as caught, JobCode(folder) as code:
        code.model(reference)
    return str(caught.value)


def test_a_class_and_a_function_are_factories(tmp_path: Path) -> None:
    folder_with(tmp_path, model=MODEL + "def wide(): return Net(width=7)\n")
    with JobCode(tmp_path) as code:
        net, wide = code.model("model:Net"), code.model("model:wide")
    assert isinstance(net, nn.Module)
    assert wide.layer.in_features == 7


def test_installed_modules_serve_too(tmp_path: Path) -> None:
    with JobCode(tmp_path) as code:
        assert isinstance(code.model("torch.nn:ReLU"), nn.ReLU)


def test_two_jobs_with_files_of_the_same_names(tmp_path: Path) -> None:
    source = MODEL + "import layers\ndef net(): return Net(layers.WIDTH)\n"
    source += "def late():\n    import layers\n    from . import layers as again\n"
    source += "    assert layers.WIDTH == again.WIDTH\n    return Net(layers.WIDTH)\n"
    before = set(sys.modules), list(sys.path)
    for width in (3, 5):
        folder = folder_with(tmp_path / str(width), model=source, layers=f"WIDTH = {width}\n")
        with JobCode(folder) as code:
            assert code.model("model:net").layer.in_features == width
            assert code.model("model:late").layer.in_features == width
    assert (set(sys.modules), list(sys.path)) == before


def test_an_imported_module_of_the_same_name_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = type(sys)("layers")
    monkeypatch.setitem(sys.modules, "layers", other)
    folder_with(tmp_path, model=MODEL + "import layers\nNet(layers.WIDTH)\n", layers="WIDTH = 2\n")
    with JobCode(tmp_path) as code:
        code.model("model:Net")
    assert sys.modules["layers"] is other


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    for width in (3, 5):
        folder_with(tmp_path, model=MODEL.replace("width=3", f"width={width}"))
        with JobCode(tmp_path) as code:
            assert code.model("model:Net").layer.in_features == width
    assert not (tmp_path / "__pycache__").exists()


def test_a_folder_on_the_path_keeps_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folder_with(tmp_path, model=MODEL + "import job_sibling\n", job_sibling="")
    with JobCode(tmp_path) as code:
        code.model("model:Net")
    assert str(tmp_path) in sys.path
    assert sys.modules.pop("job_sibling").__file__ == str(tmp_path / "job_sibling.py")


def test_a_missing_file(tmp_path: Path) -> None:
    assert fault(tmp_path, "models.wide:Net") == (
        f'factory "models.wide:Net": there is no models/wide.py in {tmp_path} and no installed '
        'module "models.wide"'
    )


def test_a_missing_attribute(tmp_path: Path) -> None:
    folder_with(tmp_path, model=MODEL)
    assert fault(tmp_path, "model:Nett") == (
        'factory "model:Nett": model.py has no "Nett"; did you mean "Net"?'
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n1 / 0\n", "ZeroDivisionError: division by zero (model.py:2)"),
        ("def f(:\n", "SyntaxError: invalid syntax (model.py:1)"),
        ("import no_such_package\n",
         "ModuleNotFoundError: No module named 'no_such_package' (model.py:1)"),
        ("raise SystemExit(3)\n", "SystemExit: 3 (model.py:1)"),
        ("raise ValueError('first\\nlast')\n", "ValueError: last (model.py:1)"),
        ("raise ValueError\n", "ValueError (model.py:1)"),
        ("import broken\n", "KeyError: 'a' (broken.py:2)"),
    ],
)  # fmt: skip
def test_a_module_that_raises(tmp_path: Path, source: str, message: str) -> None:
    folder_with(tmp_path, model=source, broken="\n{}['a']\n")
    assert fault(tmp_path) == f'factory "model:Net" cannot be loaded: {message}'
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("Net = 3\n", "is an int, not a class or function that returns a module"),
        ("def Net(): return 3\n", "returned an int, not a torch.nn.Module"),
        ("def Net(): return None\n", "returned a NoneType, not a torch.nn.Module"),
        ("def Net(width, *, depth, bias=True): pass\n",
         "needs arguments (width, depth): give them defaults, or write a function without "
         "arguments that returns the module"),
        ("def Net():\n    raise ValueError('bad width')\n",
         "raised ValueError: bad width (model.py:2)"),
        ("from torch import nn\ndef Net():\n    return nn.Linear(-1, 'a')\n",
         "raised TypeError: "),
        ("from torch import nn\nNet = nn.ReLU()\n",
         "is a module already: name a class or a function that returns a new one"),
    ],
)  # fmt: skip
def test_a_factory_that_makes_no_module(tmp_path: Path, source: str, message: str) -> None:
    folder_with(tmp_path, model=source)
    assert fault(tmp_path).startswith(f'factory "model:Net" {message}')


def test_losses_and_metrics(tmp_path: Path) -> None:
    folder_with(tmp_path, model="def loss(output, target): return 7\nscale = 2\n")
    with JobCode(tmp_path) as code:
        assert code.function("mse_loss", "loss") == "mse_loss"
        own = code.function("model:loss", "loss")
        assert not isinstance(own, str)
        assert own(0, 0) == 7
        with pytest.raises(CompileError, match='metric "model:scale" is an int, not a function'):
            code.function("model:scale", "metric")
        with pytest.raises(CompileError, match=r'loss "model:los": model\.py has no "los"; did'):
            code.function("model:los", "loss")
