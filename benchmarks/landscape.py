"""What a product of the Hessian with a vector costs, in plain gradients, against the libraries that people use for it.

    python benchmarks/landscape.py [--models resnet20 ctc] [--rounds 5] [--threads 1]

On ResNet-20 (images of 32×32, batch norm frozen): ours, PyHessian's way (its own routine, graph kept),
hessian-eigenthings and curvlinops. On a Simple Gated ConvNet behind two 2-D convolutions with ReLU, which no library
can take exactly, as CTC of torch has no second derivative: ours, against the two gradients with torch's own CTC that
central differences take, which are wrong there. All take turns, round by round. The error of a product is taken against
ours in double precision, which the tests hold against matrices that are written out.

Libraries that are not installed are left out:

    pip install --no-deps PyHessian hessian-eigenthings curvlinops-for-pytorch backpack-for-pytorch unfoldNd einops \\
        einconv linear_operator jaxtyping opt_einsum

(With its dependencies, curvlinops replaces a CPU build of torch by another one.)

Time on one machine with 2 cores: about 5 minutes.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import Figures, benchmark, interleaved, ratio
from torch import Tensor, nn

from seqssgd.landscape import CurvatureOperator, Objective, ctc_loss
from seqssgd.models.resnet import cifar_resnet
from seqssgd.models.sgcn import SimpleGatedConvNet
from seqssgd.speech import recognizer

Product = Callable[[Tensor], Tensor]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def pieces(vector: Tensor, params: list[Tensor]) -> list[Tensor]:
    parts = vector.split([p.numel() for p in params])
    return [part.view_as(p) for part, p in zip(parts, params, strict=True)]


def pyhessian(objective: Objective) -> Product:
    """As its class ``hessian`` does: the gradient's graph is kept, a product is one more backward pass."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    (batch,) = objective.batches
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls backward(create_graph=True)
        theirs = hessian(objective.model, nn.CrossEntropyLoss(), data=batch, cuda=False)
    return lambda v: flat(hessian_vector_product(theirs.gradsH, theirs.params, pieces(v, theirs.params)))


def eigenthings(objective: Objective) -> Product:
    from hessian_eigenthings import HessianOperator
    from hessian_eigenthings.loss_fns import supervised_loss

    theirs = HessianOperator(objective.model, objective.batches, supervised_loss(nn.CrossEntropyLoss()))
    return theirs.matvec


def curvlinops(objective: Objective) -> Product:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from curvlinops import HessianLinearOperator

    theirs = HessianLinearOperator(
        objective.model, nn.CrossEntropyLoss(), objective.params, objective.batches, check_deterministic=False
    )
    return lambda v: theirs @ v


PEERS = {"PyHessian": pyhessian, "hessian-eigenthings": eigenthings, "curvlinops": curvlinops}


def images() -> Objective:
    model = cifar_resnet(20).to(memory_format=torch.channels_last).eval()
    batch = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.arange(128) % 10
    return Objective(model, [batch], lambda b: model(b[0]), lambda z, b: F.cross_entropy(z, b[1], reduction="none"))


def speech(loss: Callable = ctc_loss) -> Objective:
    torch.manual_seed(0)
    model = SimpleGatedConvNet(80, 30, 190, 12, 11, front_end="conv2d", subsampling=3).eval()
    lengths = torch.tensor([300, 290, 280, 270, 260, 250])
    targets = torch.randint(1, 30, (6, 30))
    batch = torch.randn(6, 300, 80), lengths, -(-lengths // 3), targets, torch.full((6,), 30)
    return Objective(model, [batch], lambda b: model(*b[:2])[0], lambda z, b: loss(z, *b[2:]) / b[4])


def measure(name: str, args: argparse.Namespace, folder: Path) -> Figures:
    torch.manual_seed(0)
    objective = images() if name == "resnet20" else speech()
    plain = objective if name == "resnet20" else speech(recognizer.ctc_loss)
    vector = torch.randn(sum(p.numel() for p in objective.params))
    products = {
        "ours": CurvatureOperator(objective).matvec,
        "ours, graph not kept": CurvatureOperator(objective, keep_graph=False).matvec,
    }
    if name == "resnet20":
        for peer, build in PEERS.items():
            try:
                products[peer] = build(objective)
            except ImportError as error:
                print(f"  {peer} is left out: {error}")
    else:
        # the two gradients that a central difference takes, without the moving of the weights
        products["two gradients with torch's CTC"] = lambda _: flat(plain.gradient() and plain.gradient())
    run = {"plain gradient": plain.gradient, **{key: lambda p=p: p(vector) for key, p in products.items()}}
    seconds = interleaved(run, args.rounds)
    figures: Figures = {"seconds of a plain gradient": statistics.median(seconds["plain gradient"])}
    for key in products:
        figures[f"{key}, in plain gradients"] = ratio(seconds[key], seconds["plain gradient"])
    for key in products:
        if not key.startswith("ours"):
            figures[f"ours / {key}"] = ratio(seconds["ours"], seconds[key])
    figures |= errors(name, products, vector)
    return figures


def errors(name: str, products: dict[str, Product], vector: Tensor) -> Figures:
    """Of one product of each, relative to ours in double precision."""
    torch.manual_seed(0)
    objective = images() if name == "resnet20" else speech()
    objective.model.double()
    exact = objective.part([tuple(t.double() if t.is_floating_point() else t for t in b) for b in objective.batches])
    wanted = CurvatureOperator(exact).matvec(vector.double())
    found = {key: float((p(vector) - wanted).norm() / wanted.norm()) for key, p in products.items() if "two" not in key}
    if name == "ctc":
        plain = speech(recognizer.ctc_loss)
        differences = CurvatureOperator(plain, method="differences").matvec(vector)
        found["central differences with torch's CTC"] = float((differences - wanted).norm() / wanted.norm())
    return {f"relative error of {key}": error for key, error in found.items()}


if __name__ == "__main__":
    about = {
        "resnet20": "128 images of 32×32, 10 classes, cross-entropy",
        "ctc": "12 × 190 behind two 2-D convolutions, 6 utterances of up to 3 seconds",
    }
    benchmark(__doc__.splitlines()[0], about, measure, steps=None, threads=1)
