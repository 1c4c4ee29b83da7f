"""The Conformer (Gulati et al. 2020) for connectionist temporal classification."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .masks import frame_mask
from .sgcn import Conv2dFrontEnd, DepthwiseConv
from .transformer import rotate


class FeedForward(nn.Sequential):
    """Norm, dense layer to four times the width, SiLU, dense layer back: what is added by halves, twice a block."""

    def __init__(self, width: int, dropout: float):
        super().__init__(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Dropout(dropout),
            nn.Linear(4 * width, width), nn.Dropout(dropout),
        )  # fmt: skip


class Attention(nn.Module):
    """Self-attention with rotary positions; a frame sees the frames for which ``mask`` is true."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.query, self.key, self.value, self.join = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``x``: (B, T, W); ``mask``: (B, 1, T, T), the last two dimensions for who looks and who is seen."""
        y, positions = self.norm(x), torch.arange(x.shape[1], device=x.device)
        q, k, v = (
            layer(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(rotate(q, positions), rotate(k, positions), v, attn_mask=mask)
        return self.dropout(self.join(seen.transpose(1, 2).flatten(2)))


class Convolution(nn.Module):
    """Norm, gated linear unit, depthwise convolution over time, norm, SiLU, dense layer.

    The second norm is a layer norm where the paper has batch norm, whose statistics would depend on the padding.
    """

    def __init__(self, width: int, kernel: int, dropout: float):
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.conv, self.conv_norm = DepthwiseConv(width, kernel), nn.LayerNorm(width)
        self.join, self.dropout = nn.Linear(width, width), nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``mask``: (B, T, 1), 1 within an utterance and 0 outside, where the convolution finds zeros."""
        y = self.conv(F.glu(self.gate(self.norm(x)), dim=-1) * mask)
        return self.dropout(self.join(F.silu(self.conv_norm(y))))


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each added to its input; then a norm."""

    def __init__(self, width: int, heads: int, kernel: int, dropout: float):
        super().__init__()
        self.before, self.after = FeedForward(width, dropout), FeedForward(width, dropout)
        self.attention, self.convolution = Attention(width, heads, dropout), Convolution(width, kernel, dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor, looks: Tensor) -> Tensor:
        x = x + 0.5 * self.before(x)
        x = x + self.attention(x, looks)
        x = x + self.convolution(x, mask)
        return self.norm(x + 0.5 * self.after(x))


class Conformer(nn.Module):
    """A Conformer whose logits for an utterance do not depend on how much padding its minibatch brings.

    Args:
        input_size: features F of a frame.
        output_size: labels V, the blank included.
        width: ``W`` of the stream between blocks.
        layers: blocks.
        heads: attention heads of each block.
        kernel: frames of each depthwise convolution.
        reach: frames (after subsampling) to either side that attention sees; None: the whole utterance.
        subsampling: frames of the input for one of the output, 1 to 4, by two 2-D convolutions.
        dropout: of the front end's output, and of all that is added to the stream.

    Raises:
        ValueError: a size below 1, a width that the heads do not divide into even parts, an unknown subsampling, or a
            dropout outside [0, 1).

    Source: Gulati et al., "Conformer" (arXiv 2005.08100), section 2. Ours: rotary instead of relative sinusoidal
    positions, layer norm in place of batch norm, and the bounded reach.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        width: int = 144,
        layers: int = 4,
        heads: int = 4,
        kernel: int = 15,
        reach: int | None = None,
        subsampling: int = 4,
        dropout: float = 0.1,
    ):
        super().__init__()
        sizes = {"input_size": input_size, "output_size": output_size, "width": width, "layers": layers}
        sizes |= {"heads": heads, "kernel": kernel, "reach": 1 if reach is None else reach}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}={value}: it must be at least 1")
        if width % (2 * heads):
            raise ValueError(f"width={width}: it must be a multiple of twice the heads={heads}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: it must lie in [0, 1)")
        self.subsampling, self.reach = subsampling, reach
        self.front_end = Conv2dFrontEnd(input_size, subsampling)
        self.input, self.dropout = nn.Linear(self.front_end.output_size, width), nn.Dropout(dropout)
        self.blocks = nn.ModuleList(ConformerBlock(width, heads, kernel, dropout) for _ in range(layers))
        self.output = nn.Linear(width, output_size)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of every label in every frame.

        Args:
            features: (B, T, F); what lies beyond an utterance's length is not looked at.
            lengths: (B,) frames of every utterance.

        Returns:
            logits (B, ceil(T / subsampling), V) and their lengths (B,).
        """
        x = features.masked_fill(~frame_mask(lengths, features.shape[1])[..., None], 0.0)  # whatever stood there
        x, lengths = self.front_end(x, lengths)
        x = self.dropout(self.input(x))
        within = frame_mask(lengths, x.shape[1])
        looks = within[:, None, None, :]
        if self.reach is not None:
            positions = torch.arange(x.shape[1], device=x.device)
            looks = looks & ((positions[:, None] - positions).abs() <= self.reach)
        # a frame of the padding sees everything: nothing is read there, and a softmax over nothing is not a number
        looks = looks | ~within[:, None, :, None]
        for block in self.blocks:
            x = block(x, within[..., None].to(x.dtype), looks)
        return self.output(x), lengths

    def receptive_field(self) -> tuple[int, int] | None:
        """As :meth:`seqssgd.models.sgcn.SimpleGatedConvNet.receptive_field`; None where a frame sees all others."""
        if self.reach is None:
            return None
        blocks: list[Any] = list(self.blocks)
        past, future = (
            sum(self.reach + block.convolution.conv.margins[side] for block in blocks) * self.subsampling
            for side in (0, 1)
        )
        return past + self.front_end.margins[0], future + self.front_end.margins[1]
