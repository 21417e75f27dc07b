"""Who may import whom, how long a module may be, and where heavy packages may appear."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "headwater": ROOT / "proto" / "headwater",
    "storage": ROOT / "storage",
    "coordinator": ROOT / "coordinator",
    "edge_client": ROOT / "edge_client",
}
ALLOWED = {
    "headwater": set(),
    "storage": {"headwater"},
    "edge_client": {"headwater"},
    "coordinator": {"headwater", "storage"},
}
HEAVY = {
    "torch": ("coordinator/compiler/", "edge_client/trainers/torch_", "edge_client/ranks/torch_"),
    "onnx": ("coordinator/compiler/",),
    "onnxscript": ("coordinator/compiler/",),
    "onnx_ir": ("coordinator/compiler/",),
    "sqlalchemy": ("storage/", "coordinator/"),
    "alembic": ("storage/",),
    "obstore": ("storage/",),
    "pyarrow": ("proto/headwater/",),
    "PIL": ("proto/headwater/",),
    "sklearn": ("proto/headwater/",),
}
MAXIMUM_LINES = 600


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            if "_pb2" not in path.name:
                yield package, path


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """The top-level names that a module imports, and whether at its top level."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrows"
            yield (node.module or "").partition(".")[0], id(node) in top


EVERY_MODULE = list(modules())
NAMES = [str(path.relative_to(ROOT)) for _, path in EVERY_MODULE]


@pytest.mark.parametrize(("package", "path"), EVERY_MODULE, ids=NAMES)
def test_imports_follow_the_arrows(package, path):
    for name, _ in imported(path):
        if name in PACKAGES and name != package:
            assert name in ALLOWED[package], f"{package} must not import {name}"


@pytest.mark.parametrize(("package", "path"), EVERY_MODULE, ids=NAMES)
def test_heavy_packages_are_imported_only_where_they_belong(package, path):
    place = str(path.relative_to(ROOT))
    for name, _ in imported(path):
        if name in HEAVY:
            assert place.startswith(HEAVY[name]), f"{place} must not import {name}"


@pytest.mark.parametrize(("package", "path"), EVERY_MODULE, ids=NAMES)
def test_no_module_grows_too_long(package, path):
    assert len(path.read_text().splitlines()) <= MAXIMUM_LINES


def test_no_package_is_empty():
    assert len(EVERY_MODULE) > 100


def test_modules_have_no_vague_names():
    vague = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
    assert not vague & {path.stem for _, path in EVERY_MODULE}
