"""Models of the transformers library compile as they are, from a configuration without weights.

timm is not here: it needs torchvision, whose build does not import beside this torch.
"""

from importlib.util import find_spec

import pytest
from torch import Tensor, nn

from headwater.batch import TensorSignature
from tests.models.test_models import RUNS_ALL
from tests.parity.steps import BACKENDS, assert_trains_like_torch
from tests.plans import compile_case, opened
from tests.zoo import Case

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not RUNS_ALL, reason="transformers models run in make zoo"),
    pytest.mark.skipif(
        not find_spec("transformers"), reason="transformers is not installed: pip install -e .[zoo]"
    ),
]

TOKENS = TensorSignature("tokens", (6,), "int64", 11)
MASK = TensorSignature("mask", (6,), "int64", 2)
NEXT = TensorSignature("next_tokens", (6,), "int64", 11)
LABEL = TensorSignature("label", (), "int64", 3)
ADAMW: dict[str, object] = {"name": "adamw", "learning_rate": 0.001}


class Logits(nn.Module):
    """What an author writes around the library's model: tensors in order, and one tensor out."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        logits: Tensor = self.inner(input_ids=tokens, attention_mask=mask).logits
        return logits


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = GPT2Config(
        vocab_size=11, n_positions=6, n_embd=8, n_layer=2, n_head=2, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return Logits(GPT2LMHeadModel(settings))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    settings = BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=6, id2label=dict(enumerate("abc")),
    )  # fmt: skip
    return Logits(BertForSequenceClassification(settings))


CASES = {
    "GPT-2": Case(gpt2, (TOKENS,), (NEXT,), optimizer=ADAMW),
    "BERT": Case(bert, (TOKENS, MASK), (LABEL,), optimizer=ADAMW),
}


@pytest.mark.parametrize("name", CASES)
def test_a_transformers_model_trains_like_eager_torch(name: str) -> None:
    plan = opened(compile_case(CASES[name], "transformers"))
    for backend in BACKENDS:
        assert_trains_like_torch(plan, CASES[name], backend)
