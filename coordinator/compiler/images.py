"""What a plan's graphs do with images before the model sees them: augmentation and normalization.

Augmentation moves bytes: whole rows, then whole columns, are gathered by computed indices, which
every runtime does alike. It draws for each example from the counter-based generator.
"""

import torch
from torch import Tensor

from coordinator.compiler.counter_random import keep_mask, whole_numbers
from headwater.preparation import Image

FIRST_SITE = 1 << 20
"""Where the generator's places for augmentation begin; dropout counts from 1."""

_SITES = 3


def prepared(
    image: Image, pixels: Tensor, index: int, dtype: torch.dtype, seed: Tensor | None
) -> Tensor:
    """The model's input [batch, channels, height, width] in `dtype` from uint8 pixels.

    `index` numbers the model's inputs. With a `seed` (int64 scalar) the images are augmented as
    `image` says; None is for evaluation and prediction.
    """
    inside = None
    if seed is not None and image.is_augmented:
        pixels, inside = _augmented(image, pixels, seed, FIRST_SITE + _SITES * index)
    values = pixels.to(dtype) / 255
    if inside is not None:
        values = values * inside.to(dtype)
    if image.mean:
        values = values - _by_channel(image.mean, values)
    if image.standard_deviation:
        values = values / _by_channel(image.standard_deviation, values)
    return values


def _augmented(
    image: Image, pixels: Tensor, seed: Tensor, site: int
) -> tuple[Tensor, Tensor | None]:
    """Moved pixels, and which of them lie inside of the image (None: all)."""
    batch, _, height, width = pixels.shape
    offsets = 2 * image.crop_padding + 1
    columns = torch.arange(width, device=pixels.device).expand(batch, width)
    if image.flip is not None:
        keep = keep_mask(seed, site, (batch, 1), 0.5)
        columns = torch.where(keep, columns, width - 1 - columns)
    if not image.crop_padding:
        return _gathered(pixels, columns, 3), None
    columns = columns + whole_numbers(seed, site + 1, (batch, 1), offsets) - image.crop_padding
    rows = torch.arange(height, device=pixels.device).expand(batch, height)
    rows = rows + whole_numbers(seed, site + 2, (batch, 1), offsets) - image.crop_padding
    pixels = _gathered(pixels, rows.clamp(0, height - 1), 2)
    pixels = _gathered(pixels, columns.clamp(0, width - 1), 3)
    inside = _within(rows, height)[:, None, :, None] & _within(columns, width)[:, None, None, :]
    return pixels, inside


def _within(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places < size)


def _gathered(pixels: Tensor, places: Tensor, dimension: int) -> Tensor:
    """For each example its own choice of rows (dimension 2) or columns (3): places [batch, size].

    The batch and that dimension become one, so that a plain gather of whole slices does it.
    """
    batch, size = places.shape
    slices = pixels.movedim(dimension, 1)
    starts = torch.arange(batch, device=pixels.device)[:, None] * size
    flat = slices.reshape(batch * size, *slices.shape[2:])
    moved = flat.index_select(0, (starts + places).reshape(-1))
    return moved.reshape(slices.shape).movedim(1, dimension)


def _by_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """[channels, 1, 1], made by operators that the trace for torch keeps as they are."""
    return torch.cat([like.new_full((1, 1, 1), value) for value in values])
