"""Encoded images (PNG, JPEG and what else Pillow reads) as uint8 arrays."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.batch import TensorSignature
from headwater.errors import DataError, require
from headwater.preparation import CHANNELS

Pixels = NDArray[np.uint8]
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class ImageShape:
    """How an image fills a tensor: channels first, channels last, or grey without channels."""

    height: int
    width: int
    channels: int
    channels_first: bool


def image_shape(signature: TensorSignature) -> ImageShape:
    """Read a tensor's shape as an image's.

    Three dimensions are channels, height, width where the first is 1, 3 or 4, otherwise height,
    width, channels where the last is; two are height and width of a grey image.

    Raises:
        DataError: the shape is none of these.
    """
    shape = signature.shape
    if len(shape) == 2:
        return ImageShape(shape[0], shape[1], 1, channels_first=True)
    if len(shape) == 3 and shape[0] in CHANNELS:
        return ImageShape(shape[1], shape[2], shape[0], channels_first=True)
    if len(shape) == 3 and shape[2] in CHANNELS:
        return ImageShape(shape[0], shape[1], shape[2], channels_first=False)
    raise DataError(
        f"images cannot fill {signature.name!r} of the model with shape {list(shape)}: it must be "
        "[channels, height, width], [height, width, channels] or [height, width]"
    )


class ImageDecoder:
    """Decodes images to a signature's shape, in uint8.

    The image is converted to the signature's number of channels (grey, RGB, RGBA). Another size is
    refused unless the plan prepares images, or `resize` is set: then it is resized with bilinear
    interpolation.

    Raises:
        MissingExtraError: Pillow is not installed.
    """

    def __init__(self, signature: TensorSignature, *, resize: bool = False) -> None:
        self.shape = signature.shape
        self._image = require("PIL.Image", extra="images", purpose="decode images")
        self._wanted = image_shape(signature)
        self._resize = resize or signature.image is not None

    def decode(self, encoded: bytes, fail: Callable[[str], DataError]) -> Pixels:
        """One image as an array of the signature's shape.

        `fail` makes the error from a problem, so that the caller names file and row.
        """
        try:
            with self._image.open(io.BytesIO(encoded)) as image:
                pixels = self._pixels(image, fail)
        except DataError:
            raise
        # Pillow's readers raise errors of many types over damaged files.
        except Exception as error:
            problem = str(error) or type(error).__name__
            if "cannot identify" in problem:
                problem = "not in an image format that Pillow reads"
            raise fail(f"{len(encoded)} bytes cannot be decoded as an image ({problem})") from error
        if self._wanted.channels_first and pixels.ndim == 3:
            pixels = pixels.transpose(2, 0, 1)
        return pixels.reshape(self.shape)

    def _pixels(self, image: Any, fail: Callable[[str], DataError]) -> Pixels:
        size = (self._wanted.width, self._wanted.height)
        if image.mode in _WIDE_MODES:
            raise fail(f"the image has {image.mode} pixels; only 8 bits a channel are read")
        if image.size != size and not self._resize:
            raise fail(
                f"the image is {image.size[0]}×{image.size[1]} pixels, the model wants "
                f"{size[0]}×{size[1]}; add the option resize=true to resize"
            )
        mode = _MODES[self._wanted.channels]
        converted = image if image.mode == mode else image.convert(mode)
        if converted.size != size:
            converted = converted.resize(size, self._image.Resampling.BILINEAR)
        return np.asarray(converted, np.uint8)
