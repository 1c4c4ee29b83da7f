"""What trainers that run the loop themselves need in order to run it over passes.

Each module imports its trainer, if at all, itself; none is imported by ``seqssgd.optim``.
"""

from ..optim import MultiPassOptimizer


def multi_pass(optimizer: object) -> MultiPassOptimizer:
    """The optimizer with ``passes()`` that a trainer has wrapped in proxies of its own.

    Raises:
        TypeError: there is none inside.
    """
    inner = optimizer
    while True:
        attributes = vars(inner)  # proxies answer for what they wrap, so what they are shows only here
        if (next_one := attributes.get("optimizer") or attributes.get("_optimizer")) is None:
            break
        inner = next_one
    if not isinstance(inner, MultiPassOptimizer):
        raise TypeError(
            f"the trainer's optimizer is {type(inner).__name__}, which has no passes(); give the trainer "
            "SymmetricNoise(base, ...) over noise_groups(model, noise=...)"
        )
    return inner
