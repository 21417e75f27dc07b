"""A character model: which character follows, from those before it. 65,489 parameters."""

from torch import Tensor, nn

CHARACTERS = 65
"""Characters in the tables of job.toml."""


class Net(nn.Module):
    """Character numbers [batch, time] to the scores of each next character [batch, time, 65]."""

    def __init__(self, embedding: int = 16, hidden: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, embedding)
        self.recurrent = nn.GRU(embedding, hidden, batch_first=True)
        self.scores = nn.Linear(hidden, CHARACTERS)

    def forward(self, characters: Tensor) -> Tensor:
        """The scores of the character after each place."""
        states, _ = self.recurrent(self.embedding(characters))
        scores: Tensor = self.scores(states)
        return scores
