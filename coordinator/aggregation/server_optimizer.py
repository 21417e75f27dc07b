"""What a server optimizer is: how the mean change of a round becomes the step of the model.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, "Adaptive Federated Optimization",
ICLR 2021: the clients' mean change takes the place of a gradient (with the other sign) in an
optimizer on the server. It works on the trainable part of the float vector alone: buffers are
statistics and no parameters, and are averaged as without it.

Its state belongs to a model version: what it was after the round that made the version. It is
stored in float32, as the weights are, and each round begins from the stored bits, so that a
restart or a replay finds the same.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headwater.layout import Layout, Weights


class ServerOptimizer(Protocol):
    """How changes become steps. It holds settings and no state, and any thread may use it.

    Every server optimizer keeps this:
    - It uses elementwise IEEE operations (+ − × ÷ √) in a fixed order, in float64.
    - Its state is one float32 for each slot and trainable element; all are 0 at version 0.
    - With a larger change of an element, neither its step nor its state is smaller. So what a
      `Rule` promises holds for the new weights and the new state too: each value lies between
      the smallest and the largest that the updates alone would give.
    """

    @property
    def slots(self) -> tuple[str, ...]:
        """What it remembers of each element, by name."""

    def advance(
        self, change: NDArray[np.float64], state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What to add to a block of the base, of shape [count], and its state, [slots, count].

        `change` is the mean change, of shape [count], and `state` the block's state before, of
        shape [slots, count]; neither is written.
        """


@dataclass(frozen=True)
class ServerState:
    """A server optimizer's state at one model version.

    `values` is float32 of shape [slots, trainable elements] and may be mapped from disk. `layout`
    is how they lie in a file: as weights do, each tensor named `SLOT.PARAMETER`.
    """

    optimizer: ServerOptimizer
    layout: Layout
    values: NDArray[np.float32]

    @property
    def weights(self) -> Weights:
        """The values in one run, as `layout` has them."""
        return Weights(self.values.reshape(-1), np.empty(0, np.int64))


class ServerStep:
    """A server optimizer in one round: from the state before to the one `after`, block by block.

    Any thread may take any block; `after` is whole when each was taken once.
    """

    def __init__(self, before: ServerState) -> None:
        self._before = before
        self.after = replace(before, values=np.empty_like(before.values))

    def step(self, change: NDArray[np.float64], place: slice) -> NDArray[np.float64]:
        """The step of the elements at `place`, float64 of shape [count], and their new state."""
        before = self._before.values[:, place]
        step, state = self._before.optimizer.advance(change, before)
        with np.errstate(over="ignore"):  # an overflow shows as infinity, which the round refuses
            self.after.values[:, place] = state
        return step


def state_layout(optimizer: ServerOptimizer, layout: Layout) -> Layout:
    """How the state of a model of this layout lies in its file; see `ServerState`."""
    return Layout(
        tuple(
            replace(spec, name=f"{slot}.{spec.name}")
            for slot in optimizer.slots
            for spec in layout.trainable
        )
    )


def first_state(optimizer: ServerOptimizer, layout: Layout) -> ServerState:
    """The state at version 0 of a model of this layout: zeros."""
    shape = (len(optimizer.slots), layout.trainable_count)
    return ServerState(optimizer, state_layout(optimizer, layout), np.zeros(shape, np.float32))
