"""The networks that can be trained to classify images."""

import torch
from torch import nn

from ..errors import UserError
from ..models.vgg import VGG
from ..networks import Networks, NetworkSettings, check_shape, probing

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


def check_network(settings: NetworkSettings, network: nn.Module, size: tuple[int, int], num_classes: int) -> None:
    """Makes sure that a network from elsewhere gives what is said above, by a look at some black images.

    Raises:
        UserError: it does not.
    """
    if settings.elsewhere:
        count = 2 if num_classes != 2 else 3
        device = next((weight.device for weight in network.parameters()), None)
        with probing(network):
            logits = network(torch.zeros(count, 3, *size, device=device))
        check_shape(f"model.name: {settings.name!r}", "logits", logits, {"B": count, "classes": num_classes})
