"""What a server optimizer is: how the mean change of a round becomes the step of the model.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, "Adaptive Federated Optimization",
ICLR 2021: the clients' mean change takes the place of a gradient (with the other sign) in an
optimizer on the server. It works on the trainable part of the float vector alone: buffers are
statistics and no parameters, and are averaged as without it.

Its state belongs to a model version: what it was after the round that made the version. It is
stored in float32, as the weights are, and each round begins from the stored bits, so that a
restart or a replay finds the same.
"""

from dataclasses import replace
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


class ServerStep:
    """A server optimizer in one round: its state before, and the state after, block by block.

    Both are float32 of shape [slots, trainable elements]. `before` may be mapped from disk.
    """

    def __init__(self, optimizer: ServerOptimizer, before: NDArray[np.float32]) -> None:
        self._optimizer = optimizer
        self._before = before
        self._after = np.empty_like(before)

    def step(self, change: NDArray[np.float64], place: slice) -> NDArray[np.float64]:
        """The step of the elements at `place`, of shape [count]; keeps their new state."""
        step, state = self._optimizer.advance(change, self._before[:, place])
        with np.errstate(over="ignore"):  # an overflow shows as infinity, which the round refuses
            self._after[:, place] = state
        return step

    @property
    def state(self) -> Weights:
        """The state after all blocks, as `state_layout` lays it out."""
        return Weights(self._after.reshape(-1), np.empty(0, np.int64))


def state_layout(optimizer: ServerOptimizer, layout: Layout) -> Layout:
    """How a state lies in its file: as weights are, each tensor named `SLOT.PARAMETER`."""
    return Layout(
        tuple(
            replace(spec, name=f"{slot}.{spec.name}")
            for slot in optimizer.slots
            for spec in layout.trainable
        )
    )


def state_shape(optimizer: ServerOptimizer, layout: Layout) -> tuple[int, int]:
    """The shape of a state: [slots, trainable elements]."""
    return len(optimizer.slots), layout.trainable_count
