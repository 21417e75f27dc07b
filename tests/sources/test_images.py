import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headwater.batch import TensorSignature
from headwater.errors import DataError
from headwater.sources.images import ImageDecoder, image_shape

SIGNATURE = TensorSignature("x0", (3, 8, 8), "float32")
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")


def encoded(kind, image=None):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    (image or Image.fromarray(pixels)).save(file, kind)
    return file.getvalue()


PICTURES = {kind: encoded(kind) for kind in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind):
    pixels = ImageDecoder(SIGNATURE).decode(PICTURES[kind], DataError)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from(FORMATS), st.data())
def test_a_damaged_image_is_decoded_or_refused(kind, data):
    picture = bytearray(PICTURES[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(picture) - 1))
        picture[place] = data.draw(st.integers(0, 255))
    picture = bytes(picture[: data.draw(st.integers(0, len(picture)))])
    try:
        assert ImageDecoder(SIGNATURE).decode(picture, DataError).shape == (3, 8, 8)
    except DataError as error:
        assert "image" in str(error)


def test_wide_pixels_are_refused():
    picture = encoded("PNG", Image.fromarray(np.full((8, 8), 300, np.uint16)))
    with pytest.raises(DataError, match="only 8 bits a channel"):
        ImageDecoder(SIGNATURE).decode(picture, DataError)


@pytest.mark.parametrize("shape", [(), (5,), (2, 4, 5), (1, 2, 3, 4)])
def test_shapes_that_are_no_image(shape):
    with pytest.raises(DataError, match="images cannot fill 'x'"):
        image_shape(TensorSignature("x", shape, "float32"))
