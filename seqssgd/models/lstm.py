"""The LSTM language model of Zaremba, Sutskever and Vinyals (2014)."""

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]

ZAREMBA: dict[str, dict[str, float]] = {
    "small": {"hidden_size": 200, "num_layers": 2, "dropout": 0.0, "init_scale": 0.1},
    "medium": {"hidden_size": 650, "num_layers": 2, "dropout": 0.5, "init_scale": 0.05},
    "large": {"hidden_size": 1500, "num_layers": 2, "dropout": 0.65, "init_scale": 0.04},
    "rnn300": {"hidden_size": 300, "num_layers": 1, "dropout": 0.5, "init_scale": 0.1},
}
"""Constructor settings: Zaremba et al.'s three models, and the one-layer model of 300 units that Hubara et al.
(2017) quantized and Sung et al. (2020) trained with S-SGD. Neither of these printed dropout and initialization
of the last; 0.5 and 0.1 are the values of published models of its size. With a vocabulary of 10,000 the models
have 4,653,200 / 19,780,400 / 66,034,000 / 6,732,400 parameters."""


class LSTMLanguageModel(nn.Module):
    """Predicts the next token of ``B`` parallel streams: embedding, stacked LSTM, linear output layer.

    Dropout acts on the non-recurrent paths alone: on the embedding, between the LSTM layers, and before the
    output layer. Input and output embeddings are not tied, and as in PyTorch every LSTM layer has two bias vectors.

    Args:
        vocab_size: number of different tokens ``V``.
        hidden_size: units ``H`` of each LSTM layer, and length of an embedding.
        num_layers: number ``L`` of LSTM layers.
        dropout: probability with which an activation is dropped, in [0, 1).
        init_scale: every parameter, biases included, starts uniform in [−init_scale, init_scale].

    Raises:
        ValueError: a size below 1, a dropout outside [0, 1), or an initialization scale that is not positive.

    Source: Zaremba, Sutskever, Vinyals, "Recurrent Neural Network Regularization" (arXiv 1409.2329), section 4.1;
    one layer of 300 units: Hubara et al., "Quantized Neural Networks" (JMLR 18, 2017).
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 200,
        num_layers: int = 2,
        dropout: float = 0.0,
        init_scale: float = 0.1,
    ) -> None:
        super().__init__()
        for name, value in (("vocab_size", vocab_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout} (50 % is 0.5)")
        if not 0 < init_scale <= 1e30:
            raise ValueError(f"init_scale must be positive and finite, not {init_scale}")
        self.init_scale = init_scale
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        # nn.LSTM's dropout lies between layers, so it warns about one where there is a single layer
        self.lstm = nn.LSTM(hidden_size, hidden_size, num_layers, dropout=dropout if num_layers > 1 else 0.0)
        self.output = nn.Linear(hidden_size, vocab_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every parameter anew from the uniform distribution on [−init_scale, init_scale]."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -self.init_scale, self.init_scale)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Reads ``T`` tokens of each stream.

        Args:
            tokens: (T, B) token ids, time first.
            state: hidden and cell states, each (L, B, H), as returned by the call before; ``None`` means zeros.

        Returns:
            logits (T, B, V) of the token that follows each input token, and the new state. The state is still
            part of the graph; a training loop that carries it over detaches it.
        """
        hidden, new_state = self.lstm(self.dropout(self.embedding(tokens)), state)
        return self.output(self.dropout(hidden)), new_state

    @torch.no_grad()
    def zero_state(self, batch_size: int) -> State:
        """The state before the first token: two (L, B, H) tensors of zeros with the weights' type and device."""
        weight = self.output.weight
        zeros = weight.new_zeros(self.lstm.num_layers, batch_size, self.lstm.hidden_size)
        return zeros, zeros.clone()
