"""Named tensors that lie in one flat vector, so that one kernel handles all of them."""

from collections.abc import Iterable, Mapping
from math import prod

import numpy as np
import torch

from headwater.batch import Array

_ALIGNMENT_BYTES = 64
"""Each tensor begins at such an address: kernels for vectors and matrices want 16 to 64."""


class TensorVector:
    """Tensors as views of `flat`, zero at first, in the order of `shapes` with gaps that stay zero.

    Two vectors of the same shapes have their tensors at the same places.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shapes = dict(shapes)
        self._starts: dict[str, int] = {}
        step, size = _ALIGNMENT_BYTES // dtype.itemsize, 0
        for name, shape in self._shapes.items():
            self._starts[name] = size
            size += -(-prod(shape) // step) * step
        self._step = step
        self.flat = torch.zeros(size, dtype=dtype, device=device)
        self.tensors = self._views(self.flat)

    def part(self, names: Iterable[str]) -> torch.Tensor:
        """The part of `flat` that holds these tensors, which follow each other in it."""
        chosen = list(names)
        if not chosen:
            return self.flat[:0]
        end = self._starts[chosen[-1]] + prod(self._shapes[chosen[-1]])
        return self.flat[self._starts[chosen[0]] : -(-end // self._step) * self._step]

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy arrays in, in one transfer; their names and shapes are those of the vector."""
        host = torch.zeros(self.flat.shape, dtype=self.flat.dtype)
        for name, view in self._views(host).items():
            view.copy_(torch.from_numpy(np.require(arrays[name], requirements=("C", "W"))))
        self.flat.copy_(host)

    def arrays(self) -> dict[str, Array]:
        """A copy of the tensors, in one transfer."""
        host = self.flat.detach().to("cpu", copy=True)
        return {name: view.numpy() for name, view in self._views(host).items()}

    def _views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            name: flat[self._starts[name] : self._starts[name] + prod(shape)].view(shape)
            for name, shape in self._shapes.items()
        }
