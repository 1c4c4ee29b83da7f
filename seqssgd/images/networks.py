"""The networks that can be trained to classify images."""

import torch
from torch import nn

from ..errors import UserError
from ..models.vgg import VGG
from ..networks import Networks, NetworkSettings

# A network takes the number of classes, and reads images (B, 3, H, W) to logits (B, classes).
# Those for 32×32 images:
NETWORKS = Networks(
    {
        "resnet20": ("seqssgd.models.resnet:cifar_resnet", {"depth": 20}),
        "resnet56": ("seqssgd.models.resnet:cifar_resnet", {"depth": 56}),
        "wrn28_2": ("seqssgd.models.wide_resnet:WideResNet", {"depth": 28, "widen": 2}),
        "wrn28_4": ("seqssgd.models.wide_resnet:WideResNet", {"depth": 28, "widen": 4}),
        **{name: ("seqssgd.models.vgg:VGGNet", settings) for name, settings in VGG.items()},
    },
    given=("num_classes",),
)
# Those for ImageNet:
ENCODED_NETWORKS = Networks(
    {"resnet50": "seqssgd.models.resnet:resnet50", "resnet18": "seqssgd.models.resnet:resnet18"},
    given=("num_classes",),
)


def build_classifier(settings: NetworkSettings, num_classes: int) -> nn.Module:
    """A network, its weights with the channels last in memory as its images have them.

    Raises:
        UserError: settings that make no sense.
    """
    try:
        model = settings.build(num_classes=num_classes)
    except ValueError as error:
        raise UserError(f"model.{error}") from error
    return model.to(memory_format=torch.channels_last)
