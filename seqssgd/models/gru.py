"""A GRU language model: the LSTM's smaller sibling, in the frame of Zaremba, Sutskever and Vinyals (2014)."""

import torch
from torch import Tensor, nn

State = tuple[Tensor]


class GRULanguageModel(nn.Module):
    """Predicts the next token of ``B`` parallel streams: embedding, stacked GRU, linear output layer.

    Dropout lies where :class:`seqssgd.models.lstm.LSTMLanguageModel` has it: on the embedding, between the layers and
    before the output layer, never on the recurrent path.

    Args:
        vocab_size: number of different tokens ``V``.
        hidden_size: units ``H`` of each GRU layer, and length of an embedding.
        num_layers: number ``L`` of GRU layers.
        dropout: probability with which an activation is dropped, in [0, 1).
        init_scale: every parameter, biases included, starts uniform in [−init_scale, init_scale].
        tied: the output layer uses the embedding's weights (Press & Wolf 2017).

    Raises:
        ValueError: a size below 1, a dropout outside [0, 1), or an initialization scale that is not positive.

    Source: Cho et al., "Learning Phrase Representations using RNN Encoder–Decoder" (arXiv 1406.1078), Eq. 5–8; as in
    PyTorch the reset gate acts on the product with the recurrent weights.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 200,
        num_layers: int = 2,
        dropout: float = 0.0,
        init_scale: float = 0.1,
        tied: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("vocab_size", vocab_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        if not 0 < init_scale < float("inf"):
            raise ValueError(f"init_scale must be positive, not {init_scale}")
        self.init_scale = init_scale
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        # nn.GRU's dropout lies between layers, so it warns about one where there is a single layer
        self.gru = nn.GRU(hidden_size, hidden_size, num_layers, dropout=dropout if num_layers > 1 else 0.0)
        self.output = nn.Linear(hidden_size, vocab_size)
        if tied:
            self.output.weight = self.embedding.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every parameter anew from the uniform distribution on [−init_scale, init_scale]."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -self.init_scale, self.init_scale)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Reads ``T`` tokens of each stream.

        Args:
            tokens: (T, B) token ids, time first.
            state: the hidden states, one (L, B, H) tensor, as returned by the call before; ``None`` means zeros.

        Returns:
            logits (T, B, V) of the token that follows each input token, and the new state. The state is still
            part of the graph; a training loop that carries it over detaches it.
        """
        hidden, last = self.gru(self.dropout(self.embedding(tokens)), None if state is None else state[0])
        return self.output(self.dropout(hidden)), (last,)

    @torch.no_grad()
    def zero_state(self, batch_size: int) -> State:
        """The state before the first token: (L, B, H) zeros with the weights' type and device."""
        return (self.output.weight.new_zeros(self.gru.num_layers, batch_size, self.gru.hidden_size),)
