from math import prod
from pathlib import Path

import pytest

from coordinator.author import compile_job
from headwater.layout import Role


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "parameters"),
    [("digits", 10_026), ("cifar10", 62_006), ("shakespeare", 65_489), ("keras", 4_474)],
)
def test_an_example_compiles(pytestconfig: pytest.Config, example: str, parameters: int) -> None:
    folder: Path = pytestconfig.rootpath / "examples" / example
    manifest = compile_job(folder / "job.toml").manifest
    trainable = [one for one in manifest.tensors if one.role is Role.TRAINABLE]
    assert sum(prod(one.shape) for one in trainable) == parameters
    assert f"{parameters:,} parameters" in (folder / "model.py").read_text(encoding="utf-8")
    assert manifest.metrics == ("accuracy",)
