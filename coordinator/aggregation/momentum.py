"""Server momentum, plain and Nesterov's.

Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019 (FedAvgM): the plain one. Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro,
Ranzato, Szlam, Shen, "DiLoCo: Distributed Low-Communication Training of Language Models", 2023:
Nesterov's (Sutskever, Martens, Dahl, Hinton, ICML 2013) as the outer optimizer, in torch's form.
Momentum is not dampened: in the long run a constant change moves the model by
1 / (1 - momentum) of it, in both forms. We depart in one point: the momentum is float32 between
rounds, and the step is computed from it in float64 before it is rounded again.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Momentum:
    """The server optimizer `momentum`; see `ServerOptimizer`.

    With mean change c and momentum m: m' = momentum × m + c, and the model moves by
    learning_rate × m', or with `nesterov` by learning_rate × (momentum × m' + c). Without momentum
    and with a learning rate of 1 it moves by c, bit for bit.
    """

    learning_rate: float
    momentum: float
    nesterov: bool

    @property
    def slots(self) -> tuple[str, ...]:
        """The momentum itself."""
        return ("momentum",)

    def advance(
        self, change: NDArray[np.float64], state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See `ServerOptimizer.advance`."""
        factor = np.float64(self.momentum)
        moved = state.astype(np.float64)
        moved *= factor
        moved += change
        step = moved[0].copy()
        if self.nesterov:
            step *= factor
            step += change
        step *= np.float64(self.learning_rate)
        return step, moved
