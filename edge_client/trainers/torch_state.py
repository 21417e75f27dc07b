"""What a torch trainer keeps on its device between steps: parameters, buffers, optimizer slots.

Parameters lie in one flat vector, group by group, and their gradients and slots lie in vectors of
the same form. So a step of the optimizer takes a few kernels rather than some for each tensor, and
one all-reduce takes all gradients.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch

from edge_client.trainers.torch_vectors import TensorVector
from headwater.batch import Array
from headwater.manifest import Manifest
from headwater.values import check_unchanged_form


class TorchState:
    """The tensors of one plan; all zero at first.

    `leaves` are the parameters as autograd knows them and `buffers` the averaged buffers, both by
    graph name; they are views, which follow whatever is loaded or written. `lent` are copies of the
    buffers, for a step to write.
    """

    def __init__(self, manifest: Manifest, device: torch.device) -> None:
        layout = manifest.layout
        self._groups = {str(n): g.tensors for n, g in enumerate(manifest.optimizer.groups)}
        sizes = {spec.name: spec.shape for spec in layout.trainable}
        shapes = {name: sizes[name] for names in self._groups.values() for name in names}
        self.parameters = TensorVector(shapes, torch.float32, device)
        self.gradients = TensorVector(shapes, torch.float32, device)
        floats = {spec.name: spec.shape for spec in layout.float_buffers}
        integers = {spec.name: spec.shape for spec in layout.integer_buffers}
        own, lent = (
            (
                TensorVector(floats, torch.float32, device),
                TensorVector(integers, torch.int64, device),
            )
            for _ in range(2)
        )
        self.float_buffers, self.integer_buffers = own
        self.buffers, self.lent = _by_graph_name(own), _by_graph_name(lent)
        self._loans = tuple(zip(own, lent, strict=True))
        self.leaves = {
            f"p.{name}": view.detach().requires_grad_()
            for name, view in self.parameters.tensors.items()
        }
        slots = manifest.optimizer.slots
        self._initial = {slot.name: slot.initial for slot in slots if slot.tensor is not None}
        self._slots = {name: TensorVector(shapes, torch.float32, device) for name in self._initial}
        self.scalars = {
            slot.value_name: torch.zeros((), device=device) for slot in slots if slot.tensor is None
        }
        added = ["a"] * manifest.anchored + ["c"] * manifest.step.corrections
        self._added = {kind: TensorVector(shapes, torch.float32, device) for kind in added}
        self.reset_slots()

    @property
    def applied_outputs(self) -> set[str]:
        """What the optimizer's step gives."""
        kinds = ["p", *(f"o.{slot}" for slot in self._slots)]
        return {f"new.{kind}.{group}" for kind in kinds for group in self._groups} | {
            f"new.{name}" for name in self.scalars
        }

    def load(self, arrays: Mapping[str, Array], *, anchor: bool) -> None:
        """Copy parameters and buffers in, by plain name; `anchor`: the parameters are it too."""
        for vector in self._vectors:
            vector.load(arrays)
        if anchor and "a" in self._added:
            self._added["a"].flat.copy_(self.parameters.flat)

    def load_correction(self, arrays: Mapping[str, Array] | None) -> None:
        """Copy a correction of the gradients in, by plain name; None is zero."""
        if arrays is None:
            self._added["c"].flat.zero_()
        else:
            self._added["c"].load(arrays)

    def arrays(self) -> dict[str, Array]:
        """A copy of parameters and buffers, by plain name."""
        return {name: array for vector in self._vectors for name, array in vector.arrays().items()}

    def lend_buffers(self) -> dict[str, torch.Tensor]:
        """Give `lent` the buffers' values, and return it as tensors that autograd does not relate.

        As views of one vector they would take the history that a step writes into one of them, and
        keep it for the next step.
        """
        for own, lent in self._loans:
            lent.flat.copy_(own.flat)
        return {name: tensor.data for name, tensor in self.lent.items()}

    def take_buffers(self, results: Mapping[str, torch.Tensor]) -> None:
        """Copy the buffers' new values out of a step's results: most lie in `lent`.

        Raises:
            PlanError: one has another shape or dtype than the buffer.
        """
        new = {name: results[f"new.{name}"].detach() for name in self.buffers}
        for name, value in new.items():
            check_unchanged_form(name, self.buffers[name], value)
        for own, lent in self._loans:
            own.flat.copy_(lent.flat)
            # one call for each dtype, since kernels for many tensors take no two
            elsewhere = [
                name
                for name in (f"p.{one}" for one in own.tensors)
                if not new[name].is_set_to(self.lent[name])
            ]
            if elsewhere:
                torch._foreach_copy_(
                    [self.buffers[name] for name in elsewhere], [new[name] for name in elsewhere]
                )

    def take_gradients(self, found: tuple[torch.Tensor, ...], share: float, *, add: bool) -> None:
        """Begin the gradients with these times their share, or add them."""
        own = list(self.gradients.tensors.values())
        if add:
            torch._foreach_add_(own, found, alpha=share)
            return
        torch._foreach_copy_(own, found)
        if share != 1.0:
            self.gradients.flat.mul_(share)

    def parts(self, elements: int | None) -> Iterator[dict[str, torch.Tensor]]:
        """The vectors of the optimizer's step by graph name, such as `p.0`: whole, or in parts."""
        kinds = {"p": self.parameters, "g": self.gradients}
        kinds |= {f"o.{name}": vector for name, vector in self._slots.items()} | self._added
        whole = {
            f"{kind}.{group}": vector.part(names)
            for kind, vector in kinds.items()
            for group, names in self._groups.items()
        }
        size = max(vector.numel() for vector in whole.values())
        step = elements or size
        for start in range(0, size, step):
            yield {name: vector[start : start + step] for name, vector in whole.items()}

    def reset_slots(self) -> None:
        """Give every slot its initial value."""
        for name, vector in self._slots.items():
            vector.flat.fill_(self._initial[name])
        for scalar in self.scalars.values():
            scalar.zero_()

    def slot_arrays(self) -> dict[str, Array]:
        """A copy of the slots by graph name."""
        found: dict[str, Array] = {n: t.cpu().numpy().copy() for n, t in self.scalars.items()}
        for slot, vector in self._slots.items():
            found |= {f"o.{slot}.{name}": array for name, array in vector.arrays().items()}
        return found

    def load_slots(self, arrays: Mapping[str, Array]) -> None:
        """Copy slots in, by graph name."""
        for name, tensor in self.scalars.items():
            tensor.copy_(torch.from_numpy(arrays[name].reshape(())))
        for slot, vector in self._slots.items():
            vector.load({name: arrays[f"o.{slot}.{name}"] for name in vector.tensors})

    @property
    def _vectors(self) -> tuple[TensorVector, ...]:
        return self.parameters, self.float_buffers, self.integer_buffers


def _by_graph_name(vectors: Iterable[TensorVector]) -> dict[str, torch.Tensor]:
    return {f"p.{name}": view for vector in vectors for name, view in vector.tensors.items()}
