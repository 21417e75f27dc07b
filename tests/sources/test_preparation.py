"""What sources do because the plan says so: bytes of images, characters by table, class names."""

import numpy as np
import pyarrow as pa
import pytest

from headwater.batch import TensorSignature
from headwater.errors import DataError, UsageError
from headwater.preparation import Image, Text
from headwater.sources import open_source
from headwater.sources.fields import Field, Origin

PIXELS = [TensorSignature("x", (3, 4, 5), "uint8", image=Image())]
ANIMALS = ("cat", "dog", "emu")
ANIMAL = [TensorSignature("y", (), "int64", 3, labels=ANIMALS)]
TEXT = [TensorSignature("x", (4,), "int64", 3, text=Text("ab ", unknown=" ", padding="a"))]
STRICT = Text("abc")
NEXT = [TensorSignature("y", (4,), "int64", 3, text=Text("ab ", unknown=" ", padding="a", skip=1))]


def compact(text, values):
    signature = TensorSignature("t", (3,), "int64", len(text.characters), text=text)
    field = Field(signature, ("c",))
    return field.finish(field.compact(np.asarray(values), Origin("data.npz")))


def test_images_are_bytes_of_the_plan_s_size(write_parquet, picture, gather):
    pictures = [picture(0), picture(1, height=9, width=7), picture(2, mode="L")]
    path = write_parquet(x=pictures, y=["dog", "cat", "emu"])
    batch = gather(open_source(path, PIXELS, ANIMAL))
    assert batch.inputs[0].shape == (3, 3, 4, 5)
    assert batch.inputs[0].dtype == np.uint8
    stored = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    np.testing.assert_array_equal(batch.inputs[0][0], stored.transpose(2, 0, 1))
    assert batch.targets[0].tolist() == [1, 0, 2]


@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6, 4, 5, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_arrays_of_pixels_are_taken_as_bytes(tmp_path, gather, shape, dtype):
    stored = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    np.savez(tmp_path / "data.npz", x=stored, y=np.array(["emu"] * 6))
    batch = gather(open_source(str(tmp_path / "data.npz"), PIXELS, ANIMAL))
    assert batch.inputs[0].dtype == np.uint8
    wanted = stored if shape[1] == 3 else stored.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(batch.inputs[0], wanted)
    assert batch.targets[0].tolist() == [2] * 6


@pytest.mark.parametrize(
    ("x", "query", "error", "message"),
    [
        (np.zeros((2, 3, 4, 5), "f4"), "", DataError, "'x' holds float32 values, 'x' of the model "
         "takes images of bytes from 0 to 255, which the plan scales itself: store uint8"),
        (np.full((2, 3, 4, 5), 256), "", DataError, "256 is out of range: 'x' of the model takes 0 "
         "to 255"),
        (np.zeros((2, 3, 4, 6), "u1"), "", DataError, r"shape \[3, 4, 6\] for each example, 'x' of "
         r"the model wants \[3, 4, 5\]"),
        (np.zeros((2, 3, 4, 5), "u1"), "?scale=2", UsageError, "option scale: the plan itself "
         "scales the images of 'x'"),
    ],
)  # fmt: skip
def test_pixels_that_do_not_fit(tmp_path, x, query, error, message):
    np.savez(tmp_path / "data.npz", x=x, y=[0, 1])
    with pytest.raises(error, match=message):
        open_source(f"{tmp_path}/data.npz{query}", PIXELS, ANIMAL)


@pytest.mark.parametrize("kind", ["parquet", "parquet dictionary", "npz", "csv"])
def test_one_text_gives_the_input_and_the_next_characters(tmp_path, write_parquet, gather, kind):
    texts = ["abba b", "b", "aébaa", ""]
    if kind == "npz":
        path = str(tmp_path / "data.npz")
        np.savez(path, text=np.array(texts))
    elif kind == "csv":
        path = str(tmp_path / "data.csv")
        lines = ["text,other", *(f'"{text}",1' for text in texts)]
        (tmp_path / "data.csv").write_text("\n".join(lines))
    else:
        column = pa.array(texts)
        path = write_parquet(text=column.dictionary_encode() if "dict" in kind else column)
    source = open_source(f"{path}?input=text", TEXT, NEXT)
    batch = gather(source)
    assert batch.inputs[0].dtype == batch.targets[0].dtype == np.int64
    assert batch.inputs[0].tolist() == [[0, 1, 1, 0], [1, 0, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]]
    assert batch.targets[0].tolist() == [[1, 1, 0, 2], [0, 0, 0, 0], [2, 1, 0, 0], [0, 0, 0, 0]]


def test_numbers_of_characters_are_taken_too():
    assert compact(STRICT, [[0, 1, 2]]).tolist() == [[0, 1, 2]]
    with pytest.raises(DataError, match="3 is out of range: 't' of the model takes 0 to 2"):
        compact(STRICT, [[0, 1, 3]])


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        (STRICT, ["abc", "abé"], r"data.npz: column 'c', row 1: the character 'é' is not in the "
         "plan's table; unknown in the job file would stand for it"),
        (STRICT, ["ab"], "row 0: the text has 2 of 3 characters; longer texts are cut off, and "
         "padding in the job file would fill shorter ones"),
        (Text("abc", skip=2), ["abca"], "the text has 2 of 3 characters after the 2 that are"),
        (STRICT, [["abc", "abc"]], r"holds \[2\] texts for each example; one is wanted"),
        (STRICT, [[0.5, 1, 1]], "0.5 is not an integer"),
    ],
)  # fmt: skip
def test_texts_that_do_not_fit(text, values, message):
    with pytest.raises(DataError, match=message):
        compact(text, values)


def test_a_character_beyond_16_bits_and_half_a_pair():
    assert compact(Text("𝄞a\ud800"), ["a𝄞\ud800"]).tolist() == [[1, 0, 2]]


@pytest.mark.parametrize("stored", [["emu", "cat"], ["2", "0"], [2, 0]])
def test_names_and_numbers_of_classes(tmp_path, vector_input, gather, stored):
    np.savez(tmp_path / "data.npz", x0=np.ones((2, 2)), y=np.array(stored))
    batch = gather(open_source(str(tmp_path / "data.npz"), vector_input, ANIMAL))
    assert batch.targets[0].tolist() == [2, 0]


def test_names_of_classes_in_csv(tmp_path, vector_input, gather):
    (tmp_path / "data.csv").write_text("a,b,y\n1,2,dog\n3,4,emu\n")
    batch = gather(open_source(str(tmp_path / "data.csv"), vector_input, ANIMAL))
    assert batch.inputs[0].tolist() == [[1, 2], [3, 4]]
    assert batch.targets[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (["cat", "cow"], r"row 1: 'cow' is not one of the plan's labels \(cat, dog, emu\)"),
        (["cat", "3"], "row 1: 3 is out of range"),
        (["cat", None], "row 1: there is no value"),
    ],
)
def test_names_that_are_no_label(write_parquet, vector_input, stored, message):
    path = write_parquet(x0=[[1.0, 2.0]] * 2, y=stored)
    with pytest.raises(DataError, match=rf"data\.parquet: column 'y', {message}"):
        list(open_source(path, vector_input, ANIMAL).batches(2, None))


def test_folders_named_as_the_plan_s_labels(tmp_path, picture, gather):
    for name in ("emu", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(picture(height=3))
    assert gather(open_source(str(tmp_path), PIXELS, ANIMAL)).targets[0].tolist() == [1, 2]
    (tmp_path / "dog").rename(tmp_path / "cow")
    with pytest.raises(DataError, match=r"class folder 'cow' is not one of the plan's labels"):
        open_source(str(tmp_path), PIXELS, ANIMAL)
    with pytest.raises(UsageError, match="the plan itself scales the images of 'x'"):
        open_source(f"{tmp_path}?classes=cow,emu&scale=2", PIXELS, ANIMAL)
