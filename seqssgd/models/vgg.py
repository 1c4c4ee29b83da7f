"""VGG networks with batch norm for 32×32 images."""

from collections.abc import Sequence

from torch import Tensor, nn

from .resnet import conv, initialize

VGG: dict[str, dict[str, Sequence[int]]] = {
    "vgg6": {"convolutions": (1, 1, 1, 1, 1), "hidden": ()},
    "vgg16": {"convolutions": (2, 2, 3, 3, 3), "hidden": (512, 512)},
}
"""Constructor settings by name. As in Simonyan & Zisserman the number counts convolutions and dense layers. Sung et al.
(2020) do not say what their VGG6 and VGG16 are. VGG16 here is Simonyan & Zisserman's configuration D with hidden dense
layers of 512 units in place of 4096, which is enough for 32×32 images. VGG6 is our choice: one convolution for each
stage, and the last dense layer. They have 15,249,354 and 3,917,386 parameters for 10 classes."""


class VGGNet(nn.Module):
    """Stages of 3×3 convolutions, each with batch norm and ReLU, and 2×2 max pooling; then dense layers with ReLU.

    Images (B, 3, 32, 32) to logits (B, num_classes). Without dropout.

    Args:
        convolutions: number in each of five stages, of 64, 128, 256, 512 and 512 channels.
        hidden: units of the dense layers before the last.
        num_classes: number of logits.

    Raises:
        ValueError: not five stages.

    Source: Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (ICLR 2015),
    Table 1; batch norm: Ioffe & Szegedy (ICML 2015).
    """

    def __init__(self, convolutions: Sequence[int], hidden: Sequence[int] = (), num_classes: int = 10) -> None:
        super().__init__()
        if len(convolutions) != 5:
            raise ValueError(f"convolutions must be given for five stages, not {len(convolutions)}")
        layers: list[nn.Module] = []
        inputs = 3
        for width, count in zip((64, 128, 256, 512, 512), convolutions, strict=True):
            for _ in range(count):
                layers += [conv(inputs, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        layers = []
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU(inplace=True)]
            inputs = width
        self.classifier = nn.Sequential(*layers, nn.Linear(inputs, num_classes))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
