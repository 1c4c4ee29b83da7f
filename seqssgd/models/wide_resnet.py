"""Wide residual networks for 32×32 images."""

import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import conv, initialize


class PreactivationBlock(nn.Module):
    """Batch norm, ReLU and 3×3 convolution, twice, beside a shortcut (Zagoruyko & Komodakis 2016, Fig. 1 a).

    Where the shape changes, the shortcut is a 1×1 convolution of the activated input, as in the authors' program.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, width, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width, 3)
        self.shortcut = None if inputs == width and stride == 1 else conv(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x), inplace=True)
        y = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        return y + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """WRN-``depth``-``widen``: images (B, 3, H, W) to logits (B, num_classes), without dropout.

    WRN-28-2 has 1,467,610 parameters for 10 classes, WRN-28-4 5,849,050.

    Args:
        depth: convolutions on the longest path, 6n + 4.
        widen: the factor k on the channels 16, 32, 64 of the three stages.
        num_classes: number of logits.

    Raises:
        ValueError: a depth that is not 6n + 4, or a widening factor below 1.

    Source: Zagoruyko, Komodakis, "Wide Residual Networks" (BMVC 2016), Table 1.
    """

    def __init__(self, depth: int, widen: int, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6n + 4 (10, 16, 22, …), not {depth}")
        if widen < 1:
            raise ValueError(f"widen must be at least 1, not {widen}")
        self.conv = conv(3, 16, 3)
        blocks, inputs = [], 16
        for stage in range(3):
            width = 16 * widen * 2**stage
            for index in range(depth // 6):
                blocks.append(PreactivationBlock(inputs, width, 2 if stage > 0 and index == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv(x))), inplace=True)
        return self.fc(x.mean((2, 3)))
