"""The image networks against their published sizes, and against slow twins written from the papers."""

import pytest
import torch
import torch.nn.functional as F

from seqssgd.models.resnet import PaddedShortcut, cifar_resnet, resnet18, resnet50
from seqssgd.models.vgg import VGG, VGGNet
from seqssgd.models.wide_resnet import WideResNet
from seqssgd.optim import noise_groups


def randomized(model):
    """In evaluation mode, with batch norms that do something."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "running_var" in name:
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.data.uniform_(-0.5, 1.5)
    return model.eval().double()


def conv(state, name, x, stride=1):
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def norm(state, name, x):
    mean, var, gain, bias = (
        state[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * gain + bias


def dense(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


# ---- sizes and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "count"), [
    (lambda: cifar_resnet(20), 269_722),
    (lambda: cifar_resnet(20, 100), 275_572),
    (lambda: cifar_resnet(56), 853_018),
    (resnet18, 11_689_512),
    (resnet50, 25_557_032),
    (lambda: WideResNet(28, 2), 1_467_610),
    (lambda: WideResNet(28, 4), 5_849_050),
    (lambda: WideResNet(28, 10), 36_479_194),
    (lambda: VGGNet(**VGG["vgg6"]), 3_917_386),
    (lambda: VGGNet(**VGG["vgg16"]), 15_249_354),
])  # fmt: skip
def test_networks_have_the_published_number_of_parameters(build, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == count


def torchvision_shapes(depths, bottleneck):
    """Every entry of torchvision's state dict and its shape, in order, written down from the architecture."""

    def batch_norm(name, width):
        yield from ((f"{name}.{key}", (width,)) for key in ("weight", "bias", "running_mean", "running_var"))
        yield f"{name}.num_batches_tracked", ()

    yield "conv1.weight", (64, 3, 7, 7)
    yield from batch_norm("bn1", 64)
    inputs = 64
    for stage, depth in enumerate(depths, 1):
        width = 64 * 2 ** (stage - 1)
        outputs = 4 * width if bottleneck else width
        for block in range(depth):
            name = f"layer{stage}.{block}"
            sizes = [(inputs, width, 1), (width, width, 3), (width, outputs, 1)]
            for number, (a, b, size) in enumerate(sizes if bottleneck else [(inputs, width, 3), (width, width, 3)], 1):
                yield f"{name}.conv{number}.weight", (b, a, size, size)
                yield from batch_norm(f"{name}.bn{number}", b)
            if inputs != outputs:
                yield f"{name}.downsample.0.weight", (outputs, inputs, 1, 1)
                yield from batch_norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    yield "fc.weight", (1000, inputs)
    yield "fc.bias", (1000,)


IMAGENET = [(resnet18, (2, 2, 2, 2), False), (resnet50, (3, 4, 6, 3), True)]


@pytest.mark.parametrize(("build", "depths", "bottleneck"), IMAGENET, ids=["resnet18", "resnet50"])
def test_imagenet_networks_take_the_state_dicts_of_torchvision(build, depths, bottleneck):
    with torch.device("meta"):
        state = build().state_dict()
    assert [(name, tuple(value.shape)) for name, value in state.items()] == [*torchvision_shapes(depths, bottleneck)]


# ---- twins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "depths", "bottleneck"), IMAGENET, ids=["resnet18", "resnet50"])
def test_imagenet_networks_compute_what_torchvision_computes_from_such_a_state_dict(build, depths, bottleneck):
    model = randomized(build(num_classes=7))
    images = torch.randn(2, 3, 45, 33, dtype=torch.float64)
    state = model.state_dict()
    x = F.max_pool2d(norm(state, "bn1", conv(state, "conv1", images, 2)).relu(), 3, 2, 1)
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            strides = (1, stride, 1) if bottleneck else (stride, 1)  # the 3×3 convolution of a bottleneck has it
            y = x
            for number, step in enumerate(strides, 1):
                y = norm(state, f"{name}.bn{number}", conv(state, f"{name}.conv{number}", y, step))
                y = y if number == len(strides) else y.relu()
            if f"{name}.downsample.0.weight" in state:
                x = norm(state, f"{name}.downsample.1", conv(state, f"{name}.downsample.0", x, stride))
            x = (x + y).relu()
    torch.testing.assert_close(model(images), dense(state, "fc", x.mean((2, 3))))


def test_the_shortcut_without_parameters_takes_every_second_pixel_and_fills_up_with_zeros():
    x = torch.randn(2, 3, 6, 4)
    y = PaddedShortcut(3, 8, 2)(x)
    assert y.shape == (2, 8, 3, 2)
    for b, c, i, j in torch.cartesian_prod(*map(torch.arange, y.shape)).tolist():
        assert y[b, c, i, j] == (x[b, c, 2 * i, 2 * j] if c < 3 else 0)


def test_a_cifar_resnet_is_three_stages_of_blocks_with_such_shortcuts():
    model = randomized(cifar_resnet(14, 5))
    images = torch.randn(2, 3, 16, 12, dtype=torch.float64)
    state = model.state_dict()
    x = norm(state, "bn1", conv(state, "conv1", images)).relu()
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, stride)).relu()
            y = norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", y))
            kept = torch.zeros_like(y)
            kept[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
            x = (kept + y).relu()
            assert x.shape[1] == width
    torch.testing.assert_close(model(images), dense(state, "fc", x.mean((2, 3))))


def test_a_wide_resnet_normalises_before_it_convolves():
    model = randomized(WideResNet(10, 3, 5))
    images = torch.randn(2, 3, 16, 12, dtype=torch.float64)
    state = model.state_dict()
    x = conv(state, "conv", images)
    for block, stride in enumerate((1, 2, 2)):
        name = f"blocks.{block}"
        activated = norm(state, f"{name}.bn1", x).relu()
        y = norm(state, f"{name}.bn2", conv(state, f"{name}.conv1", activated, stride)).relu()
        x = conv(state, f"{name}.shortcut", activated, stride) + conv(state, f"{name}.conv2", y)
        assert x.shape[1] == 48 * 2**block
    expected = dense(state, "fc", norm(state, "bn", x).relu().mean((2, 3)))
    torch.testing.assert_close(model(images), expected)


def test_vgg_convolves_pools_and_ends_with_dense_layers():
    model = randomized(VGGNet((1, 2, 1, 1, 1), (6,), 5))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    state, x, place = model.state_dict(), images, 0
    for count in (1, 2, 1, 1, 1):
        for _ in range(count):
            x = norm(state, f"features.{place + 1}", conv(state, f"features.{place}", x)).relu()
            place += 3
        x, place = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5)), place + 1
    expected = dense(state, "classifier.2", dense(state, "classifier.0", x.flatten(1)).relu())
    torch.testing.assert_close(model(images), expected)


# ---- beginnings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [lambda: cifar_resnet(20), lambda: WideResNet(10, 2), lambda: VGGNet((1,) * 5)])
def test_convolutions_begin_with_the_variance_that_keeps_gradients_as_large_as_they_are(build):
    model = build()
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.weight.numel() > 1000]
    assert len(weights) >= 4
    for weight in weights:
        expected = 2 / (weight.shape[0] * weight.shape[2] * weight.shape[3])
        assert weight.var().item() == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize(("only", "names"), [({"conv"}, "conv"), ({"dense"}, "classifier")])
def test_noise_reaches_convolutions_or_dense_layers_alone(only, names):
    model = VGGNet((1,) * 5, (6,))
    noisy = noise_groups(model, 0.5, only=only)[0]
    kind = torch.nn.Conv2d if names == "conv" else torch.nn.Linear
    assert {id(p) for p in noisy["params"]} == {id(m.weight) for m in model.modules() if isinstance(m, kind)}


def test_impossible_sizes_are_refused():
    for build, message in (
        (lambda: cifar_resnet(21), "depth must be 6n"),
        (lambda: cifar_resnet(2), "depth must be 6n"),
        (lambda: WideResNet(28, 0), "widen must be at least 1"),
        (lambda: WideResNet(27, 2), "depth must be 6n"),
        (lambda: VGGNet((1, 1)), "five stages"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
