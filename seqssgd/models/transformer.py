"""A decoder-only Transformer language model that remembers what it has read, as a recurrent network does."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, Tensor]


def rotate(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864, Eq. 34): products of two rotated vectors see their distance.

    Args:
        x: (…, T, D) with an even D; element i and element i + D/2 are turned together.
        positions: (T,) of any origin.
        base: the slowest pair turns by 1/``base`` or a little more per position.
    """
    half = x.shape[-1] // 2
    speeds = base ** -(torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions[:, None].float() * speeds
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class TransformerBlock(nn.Module):
    """Attention, then two dense layers, each after a normalisation and added to its input (pre-norm).

    Args:
        width: ``W`` of the stream between blocks.
        heads: attention heads; ``W / heads`` is even.
        dropout: of what is added.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.dense_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value, self.join = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reads ``x`` (B, T, W) after ``keys`` and ``values`` (B, M, W) of M earlier tokens; ``mask`` (T, M + T) is
        true where a token (row) may look. Returns the output and all M + T keys and values."""
        y = self.attention_norm(x)
        keys, values = (
            torch.cat([earlier.to(new.dtype), new], dim=1)  # under autocast their types may differ
            for earlier, new in ((keys, self.key(y)), (values, self.value(y)))
        )
        q, k, v = (z.unflatten(2, (self.heads, -1)).transpose(1, 2) for z in (self.query(y), keys, values))
        here, length = x.shape[1], keys.shape[1]
        positions = torch.arange(here - length, here, device=x.device)  # only differences count
        q, k = rotate(q, positions[-here:]), rotate(k, positions)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.dropout(self.join(seen.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(F.gelu(self.up(self.dense_norm(x))))), keys, values


class TransformerLanguageModel(nn.Module):
    """Predicts the next token of ``B`` parallel streams.

    In every block a token sees itself and the ``context`` − 1 tokens before it, however the stream is cut into
    windows: the keys and values of earlier windows are the state. No gradient flows into them once the training loop
    has detached the state, as in Transformer-XL (Dai et al. 2019), which trains this way too.

    Args:
        vocab_size: number of different tokens ``V``.
        width: ``W`` of the stream between blocks, and length of an embedding.
        num_layers: number ``L`` of blocks.
        heads: attention heads of each block.
        context: tokens that a token sees, itself included.
        dropout: of the embedding and of what every block adds, in [0, 1).
        tied: the output layer uses the embedding's weights (Press & Wolf 2017).

    Raises:
        ValueError: a size below 1, a width that the heads do not divide into even parts, a dropout outside [0, 1).

    Source: Vaswani et al. (arXiv 1706.03762) in the form of GPT-2 (Radford et al. 2019): normalisation first, small
    initial weights, those before an addition smaller still; with rotary positions and RMS norms.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int = 128,
        num_layers: int = 4,
        heads: int = 4,
        context: int = 128,
        dropout: float = 0.0,
        tied: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "width": width, "num_layers": num_layers, "heads": heads}
        for name, value in {**sizes, "context": context}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if width % (2 * heads):
            raise ValueError(f"width={width} must be a multiple of twice the heads={heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {dropout}")
        self.context = context
        self.embedding = nn.Embedding(vocab_size, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout) for _ in range(num_layers))
        self.norm = nn.RMSNorm(width)
        self.output = nn.Linear(width, vocab_size, bias=False)
        if tied:
            self.output.weight = self.embedding.weight
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every weight anew from N(0, 0.02²), those before an addition with 1/√(2L) of that (GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                small = name.endswith(("join.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * len(self.blocks)) ** 0.5 if small else 0.02)
            else:
                nn.init.ones_(parameter)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Reads ``T`` tokens of each stream.

        Args:
            tokens: (T, B) token ids, time first.
            state: keys and values of M < ``context`` earlier tokens, each (L, B, M, W), as returned by the call
                before; ``None`` means that there are none.

        Returns:
            logits (T, B, V) of the token that follows each input token, and the new state. The state is still
            part of the graph; a training loop that carries it over detaches it.
        """
        keys, values = self.zero_state(tokens.shape[1]) if state is None else state
        here, length = len(tokens), len(tokens) + keys.shape[2]
        distance = torch.arange(length - here, length, device=tokens.device)[:, None] - torch.arange(
            length, device=tokens.device
        )
        mask = (distance >= 0) & (distance < self.context)
        x = self.dropout(self.embedding(tokens.T))
        kept = []
        for block, block_keys, block_values in zip(self.blocks, keys, values, strict=True):
            x, *pair = block(x, block_keys, block_values, mask)
            kept.append([z[:, max(0, length - self.context + 1) :] for z in pair])
        keys, values = (torch.stack(z) for z in zip(*kept, strict=True))
        return self.output(self.norm(x)).transpose(0, 1), (keys, values)

    @torch.no_grad()
    def zero_state(self, batch_size: int) -> State:
        """The state before the first token: two (L, B, 0, W) tensors with the weights' type and device."""
        weight = self.embedding.weight
        nothing = weight.new_zeros(len(self.blocks), batch_size, 0, weight.shape[1])
        return nothing, nothing.clone()
