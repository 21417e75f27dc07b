"""Sequences of unequal length: what lies behind an example's end is nowhere seen."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from headwater.batch import Batch, TensorSignature
from headwater.plan import Plan
from tests.parity.steps import BACKENDS, started
from tests.plans import compile_case, opened
from tests.zoo import Case

STEPS, LONGEST = 60, 5

CELLS: dict[str, Callable[[], nn.RNNBase]] = {
    "LSTM": lambda: nn.LSTM(4, 5, batch_first=True, bidirectional=True, proj_size=3),
    "GRU": lambda: nn.GRU(4, 3, 2, batch_first=True, bidirectional=True),
    "RNN": lambda: nn.RNN(4, 3, batch_first=True, bidirectional=True),
    "RNN, ReLU": lambda: nn.RNN(4, 3, 2, batch_first=True, nonlinearity="relu"),
}


class Network(nn.Module):
    """Reads the output, padded with minus infinity, and all final states."""

    def __init__(self, cells: nn.RNNBase) -> None:
        super().__init__()
        self.cells = cells
        self.head = nn.LazyLinear(3)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            features, lengths.clamp(min=1), batch_first=True, enforce_sorted=False
        )
        output, states = self.cells(packed)
        padded, _ = pad_packed_sequence(
            output, batch_first=True, padding_value=-torch.inf, total_length=STEPS
        )
        finals = states if isinstance(states, tuple) else (states,)
        seen = [padded.amax(1), *(state.transpose(0, 1).flatten(1) for state in finals)]
        return self.head(torch.cat(seen, 1))  # type: ignore[no-any-return]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = Network(CELLS[name]())
    model(torch.zeros(2, STEPS, 4), torch.ones(2, dtype=torch.int64))
    return model


@cache
def plan_of(name: str) -> Plan:
    features = TensorSignature("features", (STEPS, 4), "float32")
    lengths = TensorSignature("lengths", (), "int64", LONGEST + 1)
    case = Case(
        lambda: network(name), (features, lengths), (TensorSignature("y", (3,), "float32"),),
        loss="mse_loss", metrics=(),
    )  # fmt: skip
    return opened(compile_case(case, "packed"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("behind", [1e6, np.nan])
@pytest.mark.parametrize("name", CELLS)
def test_nothing_behind_the_end_is_seen(name: str, behind: float, backend: str) -> None:
    """Also where recurrent weights are such that a state would grow without end."""
    plan, draw = plan_of(name), np.random.default_rng(0)
    features = draw.standard_normal((6, STEPS, 4)).astype(np.float32)
    lengths = draw.integers(1, LONGEST + 1, 6)
    targets = draw.standard_normal((6, 3)).astype(np.float32)
    weights = plan.layout.unflatten(plan.initial_weights())
    weights |= {n: 40 * array for n, array in weights.items() if "weight_hh" in n}
    found = []
    for padding in (0.0, behind):
        padded = np.where(np.arange(STEPS)[:, None] < lengths[:, None, None], features, padding)
        trainer = started(plan, backend)
        trainer.set_weights(plan.layout.flatten(weights))
        batch = Batch((padded.astype(np.float32), lengths), (targets,))
        loss = trainer.train_step(batch, {}, 0)["loss"]
        found.append((loss, trainer.weights()))
    assert np.isfinite(found[0][0]) and found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1].floats, found[1][1].floats)
    assert np.isfinite(found[0][1].floats).all()
