"""What the examples train: a small GPT-2 or a small LSTM, on made-up text."""

import sys

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, default_collate
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutput

VOCABULARY = 16


class LSTM(nn.Module):
    """A language model of two layers, called as those of transformers are."""

    def __init__(self, hidden: int = 32):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, hidden)
        self.lstm = nn.LSTM(hidden, hidden, num_layers=2, batch_first=True)
        self.output = nn.Linear(hidden, VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor) -> CausalLMOutput:
        logits = self.output(self.lstm(self.embedding(input_ids))[0])
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


def gpt2() -> GPT2LMHeadModel:
    """Two layers of 32, without dropout."""
    size = dict(vocab_size=VOCABULARY, n_positions=12, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(GPT2Config(**size, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    model.loss_type = "ForCausalLM"  # what it takes anyway, with a warning
    return model


MODELS = {"gpt2": gpt2, "lstm": LSTM}


def chosen_model() -> nn.Module:
    """The model that the command line names; GPT-2 if it names none."""
    torch.manual_seed(0)
    return MODELS[sys.argv[1] if len(sys.argv) > 1 else "gpt2"]()


def text(examples: int = 256, length: int = 12) -> list[dict[str, Tensor]]:
    """Sequences in which each token says which is next: three times itself plus one, but for a tenth of them."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (examples, length), generator=generator)
    chance = torch.rand(examples, length, generator=generator)
    for t in range(1, length):
        tokens[:, t] = torch.where(chance[:, t] < 0.1, tokens[:, t], (3 * tokens[:, t - 1] + 1) % VOCABULARY)
    return [{"input_ids": row, "labels": row} for row in tokens]


def minibatches(data: list) -> DataLoader:
    """Eight sequences each, in another order in every epoch."""
    return DataLoader(data, batch_size=8, shuffle=True)


@torch.no_grad()
def clean_loss(model: nn.Module, data: list) -> float:
    """The mean loss over ``data`` at the weights themselves."""
    return model.eval()(**default_collate(data)).loss.item()
