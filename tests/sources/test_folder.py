import numpy as np
import pytest

from headwater.batch import TensorSignature
from headwater.errors import DataError
from headwater.sources import open_source

TWO = [TensorSignature("y0", (), "int64", 2)]


@pytest.fixture
def folder(tmp_path, picture):
    root = tmp_path / "pictures"
    for index, name in enumerate(["dog/a.png", "dog/b.png", "cat/c.PNG"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(index))
    (root / "cat" / "Thumbs.db").write_bytes(b"")
    (root / "cat" / "._c.png").write_bytes(b"")
    (root / ".cache").mkdir()
    return root


@pytest.mark.parametrize("memory", ["", "?memory_mib=0.00001"])
def test_classes_by_name(folder, image_input, gather, memory):
    source = open_source(f"{folder}{memory}", image_input, TWO)
    assert source.example_count() == 3
    batch = gather(source, 2)
    np.testing.assert_array_equal(batch.targets[0], [0, 1, 1])
    pixels = np.random.default_rng(2).integers(0, 256, (4, 5, 3), np.uint8)
    np.testing.assert_array_equal(
        batch.inputs[0][0], np.float32(pixels.transpose(2, 0, 1)) / np.float32(255)
    )
    one, again = (gather(source, 2, 4).inputs[0] for _ in range(2))
    np.testing.assert_array_equal(one, again)


def test_classes_in_the_model_s_order(folder, image_input, label, gather):
    source = open_source(f"{folder}?classes=bird,dog,cat", image_input, label)
    assert gather(source).targets[0].tolist() == [2, 1, 1]


def test_numbers_are_labels(folder, image_input, label, gather):
    (folder / "cat").rename(folder / "7")
    (folder / "dog").rename(folder / "0")
    assert gather(open_source(str(folder), image_input, label)).targets[0].tolist() == [0, 0, 7]


def test_labels_that_cannot_be_told(folder, image_input, label):
    with pytest.raises(DataError, match=r"2 class folders \(cat, dog…\), the model has 10 classes"):
        open_source(str(folder), image_input, label)
    with pytest.raises(DataError, match="class folder 'dog' is not in classes=cat,bird"):
        open_source(f"{folder}?classes=cat,bird", image_input, label)
    (folder / "cat").rename(folder / "0")
    (folder / "dog").rename(folder / "12")
    with pytest.raises(DataError, match="column 'label', row 1: 12 is out of range"):
        open_source(str(folder), image_input, label)


def test_a_damaged_image_is_named(folder, image_input):
    (folder / "dog" / "b.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"dog/b\.png: 7 bytes cannot be decoded"):
        list(open_source(str(folder), image_input, TWO).batches(2, None))


def test_an_image_of_another_size(folder, image_input, picture):
    (folder / "cat" / "c.PNG").write_bytes(picture(0, width=9))
    with pytest.raises(DataError, match=r"c\.PNG: the image is 9×4 pixels, the model wants 5×4"):
        open_source(str(folder), image_input, TWO)
    assert open_source(f"{folder}?resize=true", image_input, TWO).example_count() == 3


def test_nothing_to_read(tmp_path, image_input):
    with pytest.raises(DataError, match="empty shard: neither"):
        open_source(str(tmp_path), image_input, TWO)
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match="empty shard: there are no examples"):
        open_source(str(tmp_path), image_input, TWO)
    with pytest.raises(DataError, match="one input and one target"):
        open_source(str(tmp_path), [], TWO)
