"""Residual networks: He et al.'s for 32×32 images, and those for ImageNet under torchvision's names."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2016, Fig. 5 left).

    Args:
        inputs: channels that come in.
        width: channels of the convolutions.
        stride: of the first convolution.
        shortcut: brings the input to the shape of the output; None: it has that shape already.
    """

    expansion = 1  # channels that go out, as a multiple of the width

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut (He et al. 2016, Fig. 5 right); arguments as :class:`BasicBlock`.

    The 3×3 convolution has the stride, as in torchvision (and the reference of Goyal et al. 2017, section 5.1), while
    He et al. gave it to the first.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class PaddedShortcut(nn.Module):
    """He et al.'s option A, without parameters: every second row and column, and zeros for the new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = outputs - inputs, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """He et al.'s option B: a 1×1 convolution and a batch norm."""
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Images (B, 3, H, W) to logits (B, num_classes): a stem, stages of residual blocks, global average pooling, a
    dense layer.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        depths: blocks in each stage; every stage but the first begins with stride 2.
        num_classes: number of logits.
        width: channels of the stem and of the first stage, doubled from stage to stage.
        imagenet: the stem of ImageNet (7×7 convolution with stride 2, then max pooling) and projection shortcuts; if
            not, that of CIFAR (a 3×3 convolution) and shortcuts without parameters.

    Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (CVPR 2016), Table 1 and section 4.2.
    """

    def __init__(
        self, block: type, depths: Sequence[int], num_classes: int, width: int = 64, imagenet: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = conv(3, width, 7, 2) if imagenet else conv(3, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if imagenet else nn.Identity()
        inputs = width
        for stage, depth in enumerate(depths):
            blocks, outputs = [], width * 2**stage * block.expansion
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                shortcut = None
                if stride != 1 or inputs != outputs:
                    shortcut = (projection if imagenet else PaddedShortcut)(inputs, outputs, stride)
                blocks.append(block(inputs, width * 2**stage, stride, shortcut))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.fc = nn.Linear(inputs, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


def cifar_resnet(depth: int, num_classes: int = 10) -> ResNet:
    """The network of ``depth`` = 6n + 2 layers for 32×32 images: ResNet-20 has 269,722 parameters for 10 classes,
    ResNet-56 853,018.

    Raises:
        ValueError: a depth that is not 6n + 2.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, …), not {depth}")
    return ResNet(BasicBlock, [depth // 6] * 3, num_classes, width=16, imagenet=False)


def resnet18(num_classes: int = 1000) -> ResNet:
    """ResNet-18 for ImageNet, 11,689,512 parameters; names, shapes and outputs are those of torchvision's."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet50(num_classes: int = 1000) -> ResNet:
    """ResNet-50 for ImageNet, 25,557,032 parameters; names, shapes and outputs are those of torchvision's."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that a batch norm follows (so it has no bias), padded to keep height and width at stride 1."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """Convolutions normal with variance 2 / (size² · output channels) (He et al. 2015, section 2.2, backward case);
    dense layers and batch norms keep torch's initial values."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
