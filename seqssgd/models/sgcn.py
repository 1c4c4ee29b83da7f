"""The Simple Gated ConvNet (Lee, Park, Sung 2019): gated linear layers and depthwise convolutions over time."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .masks import frame_mask

GATES = ("glu", "self", "lowrank")
NORMS = ("layer", "none")
FRONT_ENDS = ("stack", "conv2d")

SIZES: dict[str, dict] = {
    "12x190": {"width": 190, "layers": 12},
    "12x300": {"width": 300, "layers": 12},
    "12x190-conv2d": {"width": 190, "layers": 9, "kernel": 3, "front_end": "conv2d", "norm": "none", "residual": False},
    "12x300-conv2d": {"width": 300, "layers": 9, "kernel": 3, "front_end": "conv2d", "norm": "none", "residual": False},
}
"""Constructor settings. Sung et al. (2020) print "12x190" with 1.09 and "12x300" with 2.24 million parameters, and no
12 equal layers can have both. The ones named conv2d, two 2-D convolutions, nine gated layers and the output layer,
happen to have both with 80 features and 31 outputs (1,088,039 and 2,240,399); whether they are the authors' network is
not known."""


class DepthwiseConv(nn.Conv1d):
    """A convolution over time of every channel by itself, for input and output (B, T, C).

    Args:
        width: channels C.
        kernel: frames that an output depends on.
        lookahead: how many of them lie in the future; None: as many as in the past.
    """

    def __init__(self, width: int, kernel: int, lookahead: int | None = None):
        super().__init__(width, width, kernel, groups=width, bias=False)
        ahead = kernel // 2 if lookahead is None else lookahead
        self.margins = (kernel - 1 - ahead, ahead)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, *self.margins))
        # (B, C, 1, T) with the channels innermost in memory, as they are in x: nothing is copied, and a convolution
        # over images takes that layout, which one over time would first rearrange
        y = F.conv2d(x.transpose(1, 2)[:, :, None], self.weight.unsqueeze(1), groups=self.groups)
        return y[:, :, 0].transpose(1, 2)


class Gate(nn.Module):
    """(W_a u + b_a) ⊙ σ(gate): the gate is a full linear map of u, one through a third of the width, or W_a u + b_a."""

    def __init__(self, inputs: int, width: int, kind: str = "glu"):
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(inputs, 2 * width if kind == "glu" else width)
        if kind == "lowrank":
            self.gate = nn.Sequential(nn.Linear(inputs, width // 3, bias=False), nn.Linear(width // 3, width))

    def forward(self, u: Tensor) -> Tensor:
        if self.kind == "glu":
            return F.glu(self.linear(u), dim=-1)
        value = self.linear(u)
        return value * torch.sigmoid(value if self.kind == "self" else self.gate(u))


class SGCNBlock(nn.Module):
    """Gate, then depthwise convolution, with a normalisation before and a residual connection around the two.

    Input (B, T, ``inputs``) and output (B, T, ``width``). Only the convolution joins frames, and it finds zeros outside
    of an utterance, so that what a frame becomes does not depend on how much padding its minibatch brings. What comes
    out there means nothing.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        kernel: int,
        gate: str = "glu",
        norm: str = "layer",
        residual: bool = True,
        dropout: float = 0.0,
        lookahead: int | None = None,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(inputs) if norm == "layer" else nn.Identity()
        self.gate = Gate(inputs, width, gate)
        self.conv = DepthwiseConv(width, kernel, lookahead)
        self.dropout = nn.Dropout(dropout)
        self.residual = residual and inputs == width

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``mask``: (B, T, 1), 1 within an utterance and 0 outside."""
        y = self.dropout(self.conv(self.gate(self.norm(x)) * mask))
        return x + y if self.residual else y


class StackedFrames(nn.Module):
    """Joins every ``factor`` successive frames into one: (B, T, F) to (B, ceil(T / factor), factor · F)."""

    def __init__(self, features: int, factor: int):
        super().__init__()
        self.factor, self.output_size = factor, factor * features
        self.margins = (0, factor - 1)  # frames before and after the first one that an output depends on

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = F.pad(x, (0, 0, 0, -x.shape[1] % self.factor))
        return x.unflatten(1, (-1, self.factor)).flatten(2), -(-lengths // self.factor)


class Conv2dFrontEnd(nn.Module):
    """Two 3 x 3 convolutions over time and frequency with 32 channels each; the first halves the frequencies."""

    STRIDES = {1: (1, 1), 2: (2, 1), 3: (3, 1), 4: (2, 2)}

    def __init__(self, features: int, factor: int, channels: int = 32):
        super().__init__()
        if factor not in self.STRIDES:
            raise ValueError(f"subsampling={factor}: with front_end='conv2d' it must be one of 1, 2, 3, 4")
        self.strides = self.STRIDES[factor]
        self.margins = (1 + self.strides[0],) * 2  # three frames each, the second of frames `stride` apart
        self.conv1 = nn.Conv2d(1, channels, 3, (self.strides[0], 2), 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, (self.strides[1], 1), 1)
        self.output_size = channels * -(-features // 2)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = x[:, None]
        for conv, stride in zip((self.conv1, self.conv2), self.strides, strict=True):
            x, lengths = F.relu(conv(x)), -(-lengths // stride)
            x = x * frame_mask(lengths, x.shape[2])[:, None, :, None]
        return x.transpose(1, 2).flatten(2), lengths


class SimpleGatedConvNet(nn.Module):
    """A Simple Gated ConvNet for connectionist temporal classification.

    What the published text says is: gated ConvNet, depthwise 1-D convolution, 12 layers of 190 or 300 units. Kernel,
    gate, normalisation, residual connections, features and subsampling are choices of this implementation.

    Args:
        input_size: features F of a frame.
        output_size: labels V, the blank included.
        width: units of each layer.
        layers: gated layers.
        kernel: frames of each depthwise convolution.
        gate: ``"glu"`` (a gate of its own), ``"self"`` (a unit gates itself), ``"lowrank"`` (through width / 3).
        norm: ``"layer"``, or ``"none"``. There is no batch norm: its statistics would depend on the padding.
        residual: whether a layer's input is added to its output (where the sizes agree).
        front_end: ``"stack"`` joins frames, ``"conv2d"`` is two 2-D convolutions.
        subsampling: frames of the input for one of the output.
        dropout: of the layers' outputs.
        lookahead: frames of the future that every convolution sees; None: as many as of the past. 0 is causal.

    Raises:
        ValueError: a size below 1, an unknown choice, a dropout outside [0, 1), or more look-ahead than kernel.

    Source: Lee, Park, Sung, "Simple Gated Convnet for Small Footprint Acoustic Modeling" (ASRU 2019); the sizes are
    those of Sung et al. (arXiv 2009.02479), Table 4.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        width: int = 190,
        layers: int = 12,
        kernel: int = 11,
        gate: Literal["glu", "self", "lowrank"] = "glu",
        norm: Literal["layer", "none"] = "layer",
        residual: bool = True,
        front_end: Literal["stack", "conv2d"] = "stack",
        subsampling: int = 3,
        dropout: float = 0.0,
        lookahead: int | None = None,
    ):
        super().__init__()
        sizes = {"input_size": input_size, "output_size": output_size, "width": width, "layers": layers}
        for name, value in {**sizes, "kernel": kernel, "subsampling": subsampling}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: it must be at least 1")
        for name, value, known in (("gate", gate, GATES), ("norm", norm, NORMS), ("front_end", front_end, FRONT_ENDS)):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: it must lie in [0, 1); 50 % is 0.5")
        if lookahead is not None and not 0 <= lookahead < kernel:
            raise ValueError(f"lookahead={lookahead}: with kernel={kernel} take 0 to {kernel - 1}, or None")
        self.subsampling = subsampling
        self.front_end = (StackedFrames if front_end == "stack" else Conv2dFrontEnd)(input_size, subsampling)
        inputs = [self.front_end.output_size, *[width] * (layers - 1)]
        self.blocks = nn.ModuleList(
            SGCNBlock(size, width, kernel, gate, norm, residual, dropout, lookahead) for size in inputs
        )
        self.norm = nn.LayerNorm(width) if norm == "layer" else nn.Identity()
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
        mask = frame_mask(lengths, x.shape[1])[..., None].to(x.dtype)
        for block in self.blocks:
            x = block(x, mask)
        return self.output(self.norm(x)), lengths

    def receptive_field(self) -> tuple[int, int]:
        """How many frames of the features before and after its first one a frame of the logits depends on, at most.

        With subsampling s, frame t of the logits depends on frames s·t - past … s·t + future of the features.
        """
        blocks: list[Any] = list(self.blocks)  # torch does not know what a ModuleList holds
        past, future = (sum(block.conv.margins[side] for block in blocks) * self.subsampling for side in (0, 1))
        return past + self.front_end.margins[0], future + self.front_end.margins[1]
