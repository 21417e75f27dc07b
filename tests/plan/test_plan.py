import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from headwater.errors import PlanError
from headwater.layout import Role
from headwater.manifest import Manifest, Member
from headwater.plan import MANIFEST, Plan, write_plan
from tests.plans import compiled, opened


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    compiled("mlp").write(tmp_path / "mlp.plan")
    return tmp_path / "mlp.plan"


def rewritten(path: Path, changes: Mapping[str, bytes], **options: int) -> Path:
    """A copy of a plan file with some entries replaced or added."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    bad = path.with_name("bad.plan")
    with zipfile.ZipFile(bad, "w", **options) as archive:  # type: ignore[call-overload]
        for name, data in {**entries, **changes}.items():
            archive.writestr(name, data)
    return bad


def manifest_with(path: Path, **fields: object) -> bytes:
    with zipfile.ZipFile(path) as archive:
        content = json.loads(archive.read(MANIFEST))
    return json.dumps({**content, **fields}).encode()


@pytest.mark.parametrize("name", ["a.plan", "folder"])
def test_a_plan_makes_a_round_trip(tmp_path: Path, name: str) -> None:
    source = compiled("resnet")
    digest = source.write(tmp_path / name)
    plan = Plan.open(tmp_path / name)
    assert plan.digest == digest == source.digest
    assert plan.manifest == source.manifest
    assert {m: plan.read(m) for m in plan.manifest.members} == dict(source.members)


def test_the_same_plan_is_the_same_file(tmp_path: Path) -> None:
    for name in ("one.plan", "two.plan"):
        compiled("lenet").write(tmp_path / name)
    assert (tmp_path / "one.plan").read_bytes() == (tmp_path / "two.plan").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_manifest_bytes_are_canonical() -> None:
    data = compiled("resnet").manifest.to_bytes()
    assert Manifest.from_bytes(data).to_bytes() == data


def test_blobs_are_fetched_only_when_read() -> None:
    source = compiled("mlp")
    asked: list[str] = []

    def fetch(digest: str) -> bytes:
        asked.append(digest)
        return next(
            source.members[n] for n, m in source.manifest.members.items() if m.digest == digest
        )

    plan = Plan.from_blobs(source.manifest.to_bytes(), fetch)
    assert not asked
    plan.read("train.onnx")
    assert asked == [source.manifest.members["train.onnx"].digest]


def test_layout_and_initial_weights() -> None:
    plan = opened(compiled("resnet"))
    roles = {spec.name: spec for spec in plan.layout.tensors}
    assert roles["1.running_var"].positive
    assert roles["1.running_mean"].role is Role.AVERAGED_BUFFER
    assert roles["1.num_batches_tracked"].dtype == "int64"
    weights = plan.layout.unflatten(plan.initial_weights())
    np.testing.assert_array_equal(weights["1.running_var"], np.ones(4, np.float32))


def test_a_newer_schema_is_refused(plan_file: Path) -> None:
    bad = rewritten(plan_file, {MANIFEST: manifest_with(plan_file, schema=2)})
    with pytest.raises(PlanError, match=r"schema 2; this version.*up to 1: upgrade headwater"):
        Plan.open(bad)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "names no schema"),
        (b'{"schema": "1"}', "names no schema"),
        (b'{"schema": 1}', "missing or wrong field"),
    ],
)
def test_a_damaged_manifest_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan(content, lambda name: b"")


@pytest.mark.parametrize(
    "fields",
    [
        {"tensors": [{"name": "a", "shape": [-1], "dtype": "float32", "role": "trainable"}]},
        {"batch_size": 0},
        {"batch_size": True},
        {"inputs": None},
        {"members": {"train.onnx": {"digest": "../../etc/passwd", "size_bytes": 1}}},
    ],
)
def test_wrong_fields_are_refused(plan_file: Path, fields: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="missing or wrong field"):
        Manifest.from_bytes(manifest_with(plan_file, **fields))


IMAGE = {"mean": [0.5] * 3, "standard_deviation": [], "flip": "horizontal", "crop_padding": 1}
TEXT = {"characters": "ab\n", "unknown": "a", "padding": None, "skip": 0}


def prepared(**changed: object) -> dict[str, object]:
    """A signature of the manifest, as JSON."""
    plain = {"name": "x", "shape": [3, 4, 4], "dtype": "uint8", "maximum": None}
    return {**plain, "image": None, "text": None, "labels": [], "is_weight": False, **changed}


def test_preparation_is_read_back_as_it_was_written(plan_file: Path) -> None:
    letters = {"shape": [4], "dtype": "int64", "maximum": 3}
    inputs = [
        prepared(image=IMAGE),
        prepared(text=TEXT, **letters),
        prepared(labels=["Ä", "b", "c"], **letters),
    ]
    written = manifest_with(plan_file, inputs=inputs)
    manifest = Manifest.from_bytes(written)
    assert json.loads(json.dumps([asdict(one) for one in manifest.inputs])) == inputs
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@pytest.mark.parametrize(
    "signature",
    [
        prepared(image={**IMAGE, "mean": [0.5]}),
        prepared(image={**IMAGE, "mean": [float("inf")] * 3}),
        prepared(image={**IMAGE, "mean": "0.5"}),
        prepared(image={**IMAGE, "standard_deviation": [1.0, 0.0, 1.0]}),
        prepared(image={**IMAGE, "crop_padding": 4}),
        prepared(image={**IMAGE, "crop_padding": -1}),
        prepared(image={**IMAGE, "flip": "sideways"}),
        prepared(image=[]),
        prepared(image=IMAGE, dtype="float32"),
        prepared(image=IMAGE, labels=["a"]),
        prepared(shape=[4], dtype="int64", text={**TEXT, "characters": "aa"}),
        prepared(shape=[4], dtype="int64", text={**TEXT, "characters": "a\ud800"}),
        prepared(shape=[4], dtype="int64", text={**TEXT, "characters": ["a", "b", "\n"]}),
        prepared(shape=[4], dtype="int64", text={**TEXT, "padding": "z"}),
        prepared(shape=[4], dtype="int64", text={**TEXT, "skip": -1}),
        prepared(shape=[4, 4], dtype="int64", text=TEXT),
        prepared(shape=[], dtype="int64", labels=["a", "a"]),
        prepared(shape=[], dtype="int64", labels=["a\x1b[2J"]),
        prepared(shape=[], dtype="int64", labels="ab"),
        prepared(shape=[], dtype="int64", labels=["a", "b"], maximum=1),
    ],
)
def test_wrong_preparation_is_refused(plan_file: Path, signature: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="missing or wrong field"):
        Manifest.from_bytes(manifest_with(plan_file, inputs=[signature]))


def test_a_damaged_member_is_refused(plan_file: Path) -> None:
    good = compiled("mlp").members["train.onnx"]
    flipped = good[:100] + bytes([good[100] ^ 1]) + good[101:]
    with pytest.raises(PlanError, match=r"'train.onnx' does not have the digest.*swapped"):
        Plan.open(rewritten(plan_file, {"train.onnx": flipped}))


def test_swapped_members_are_refused(plan_file: Path) -> None:
    other = compiled("lenet").members["train.onnx"]
    with pytest.raises(PlanError, match=r"'train.onnx' has \d+ bytes; the manifest says"):
        Plan.open(rewritten(plan_file, {"train.onnx": other}))


def test_a_truncated_file_is_refused(plan_file: Path) -> None:
    """Cut at every kind of boundary: before and after each member's header and bytes, within them,
    and within the directory at the end."""
    whole = plan_file.read_bytes()
    with zipfile.ZipFile(plan_file) as archive:
        starts = [info.header_offset for info in archive.infolist()]
        directory = archive.start_dir
    cuts = {0, 1, directory, directory + 1, directory + 46, len(whole) - 22, len(whole) - 1}
    for start, end in pairwise([*starts, directory]):
        cuts |= {start, start + 30, (start + end) // 2, end - 1}
    for cut in sorted(cuts):
        plan_file.write_bytes(whole[:cut])
        with pytest.raises(PlanError, match="damaged or not a plan"):
            Plan.open(plan_file)
    plan_file.write_bytes(whole)
    Plan.open(plan_file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        Plan.open(tmp_path / "absent.plan")


def test_a_missing_member_is_refused(tmp_path: Path) -> None:
    compiled("mlp").write(tmp_path / "plan")
    (tmp_path / "plan" / "apply.onnx").unlink()
    with pytest.raises(PlanError, match=r"apply\.onnx: cannot be read"):
        Plan.open(tmp_path / "plan")


@pytest.mark.parametrize("name", ["../escape.onnx", "a/b.onnx", "a\\b.onnx", "/etc/passwd", "UP.x"])
def test_names_with_folders_are_refused(plan_file: Path, name: str) -> None:
    with pytest.raises(PlanError, match="without folders"):
        Plan.open(rewritten(plan_file, {name: b"x"}))


def test_a_manifest_cannot_name_folders(plan_file: Path) -> None:
    members = {"../train.onnx": {"digest": "0" * 64, "size_bytes": 1}}
    with pytest.raises(PlanError, match="without folders"):
        Plan(manifest_with(plan_file, members=members), lambda name: b"")


def test_duplicate_names_are_refused(plan_file: Path) -> None:
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(plan_file, "a") as archive,
    ):
        archive.writestr("train.onnx", b"other")
    with pytest.raises(PlanError, match=r"names the member 'train.onnx' twice"):
        Plan.open(plan_file)


def test_compression_is_refused(plan_file: Path) -> None:
    bad = rewritten(plan_file, {}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(PlanError, match="is compressed; plans are stored as is"):
        Plan.open(bad)


def test_sizes_beyond_the_limit_are_refused(plan_file: Path) -> None:
    members = {"train.onnx": {"digest": "0" * 64, "size_bytes": 2**40}}
    with pytest.raises(PlanError, match=f"{2**40} bytes; the limit is"):
        Plan(manifest_with(plan_file, members=members), lambda name: b"")


def test_an_unknown_member_is_refused() -> None:
    with pytest.raises(PlanError, match=r"has no member 'other.onnx'; it has: apply.aten.json"):
        opened(compiled("mlp")).read("other.onnx")


def test_members_that_the_manifest_does_not_name_are_not_written(tmp_path: Path) -> None:
    source = compiled("mlp")
    with pytest.raises(PlanError, match=r"differ in: extra.onnx"):
        write_plan(tmp_path / "x.plan", source.manifest, {**source.members, "extra.onnx": b""})
    wrong = replace(source.manifest, members={"a.onnx": Member("0" * 64, 1)})
    with pytest.raises(PlanError, match="does not have the digest"):
        write_plan(tmp_path / "x.plan", wrong, {"a.onnx": b"x"})
    assert not list(tmp_path.iterdir())
