"""Recurrent language models.

Hochreiter, Schmidhuber: Long short-term memory, Neural Computation, 1997. Cho et al.: Learning
phrase representations using RNN encoder–decoder, EMNLP 2014. The sizes of the LSTM are those of
Caldas et al.: LEAF: a benchmark for federated settings, 2018, but for its vocabulary, which is as
large as a text is long: the loss cannot tell which dimension of the output holds the classes then.
"""

from functools import partial

from torch import Tensor, nn

from headwater.batch import TensorSignature
from tests.models.whole import Whole
from tests.zoo import Case


class LanguageModel(nn.Module):
    """Tokens [batch, length] to [batch, length, vocabulary]."""

    def __init__(
        self, kind: type[nn.LSTM] | type[nn.GRU], vocabulary: int, embedding: int, width: int,
        layers: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.cells = kind(embedding, width, layers, batch_first=True, dropout=dropout)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.cells(self.embedding(tokens))
        output: Tensor = self.head(hidden)
        return output


def _case(
    kind: type[nn.LSTM] | type[nn.GRU], length: int, vocabulary: int, embedding: int, width: int,
    layers: int, dropout: float,
) -> Case:  # fmt: skip
    tokens = TensorSignature("tokens", (length,), "int64", vocabulary)
    targets = TensorSignature("next_tokens", (length,), "int64", vocabulary)
    model = partial(LanguageModel, kind, vocabulary, embedding, width, layers, dropout)
    return Case(
        model, (tokens,), (targets,), optimizer={"name": "adam", "learning_rate": 0.003}
    )  # fmt: skip


MODELS = {
    "LSTM language model": Whole(
        _case(nn.LSTM, 80, 90, 8, 256, 2, 0.0), _case(nn.LSTM, 5, 11, 4, 6, 2, 0.0)
    ),
    "GRU language model": Whole(
        _case(nn.GRU, 64, 1000, 64, 256, 1, 0.0), _case(nn.GRU, 5, 11, 4, 6, 1, 0.0)
    ),
}
