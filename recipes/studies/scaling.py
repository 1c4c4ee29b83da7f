"""Settings relative to a recipe's: the same training at another length or price, a multiple of its noise or rate.

Where epochs change, all that counts epochs does. The functions take a recipe's configuration, with the sections
``optim`` and ``training``, and give the settings to change, under dotted keys such as ``optim.lr_period``.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from seqssgd.errors import UserError
from seqssgd.optim import schedules
from seqssgd.training import OptimConfig


def absolute(base: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """``settings`` under dotted keys, those that are relative to the configuration ``base`` worked out."""
    found = {}
    for key, value in settings.items():
        found |= RELATIVE[key](base, value) if key in RELATIVE else {key: value}
    if found.get("optim.method") == "none":  # which has no noise whose course could be set
        found = {key: value for key, value in found.items() if key not in ("optim.noise_schedule", "optim.noise_ramp")}
    return found


def scaled(config: Any, factor: float) -> dict[str, Any]:
    """``factor`` times the epochs; learning rate and noise take their course over them and end where they did.

    Raises:
        UserError: that many epochs are no whole number: two runs would not be equal in compute.
    """
    epochs = config.training.epochs
    scaled_epochs = round(epochs * factor)
    if scaled_epochs < 1 or not math.isclose(epochs * factor, scaled_epochs):
        raise UserError(f"training.epochs: {epochs} × {factor:g} is no whole number; take a multiple of {1 / factor:g}")
    return _over(config.optim, epochs, scaled_epochs)


def in_phases(config: Any, text: str) -> dict[str, Any]:
    """Noise by phases for the passes that the configuration's epochs have without noise.

    Args:
        text: as in Table 1 of Sung et al. (2020), such as ``75-25S-25S``: only the proportions count. An epoch with
            noise (S) costs two passes; with learning rates that fall in ``steps``, they fall between the phases.

    Raises:
        UserError: no such phases, or noise in all of them for an odd number of passes.
    """
    try:
        schedules.phases(text)
    except ValueError as error:
        raise UserError(str(error)) from None
    passes = config.training.epochs
    noisy = [part.endswith("S") for part in text.split("-")]
    lengths = [int(part.rstrip("S")) for part in text.split("-")]
    shares = {kind: [length * (is_noisy == kind) for length, is_noisy in zip(lengths, noisy, strict=True)]
              for kind in (False, True)}  # fmt: skip
    total = sum(shares[False]) + 2 * sum(shares[True])
    with_noise = math.floor(passes * sum(shares[True]) / max(total, 1) + 0.5)
    without = passes - 2 * with_noise
    if without < 0 or (without > 0 and not any(shares[False])):
        raise UserError(f"training.epochs: {passes} is odd, and {text} has two passes in every epoch; take an even one")
    epochs = [sum(pair) for pair in zip(_split(without, shares[False]), _split(with_noise, shares[True]), strict=True)]
    found = _over(config.optim, passes, sum(epochs))
    if config.optim.lr_schedule == "steps":
        found["optim.lr_milestones"] = list(accumulate(epochs[:-1]))
    written = [f"{length}{'S' * is_noisy}" for length, is_noisy in zip(epochs, noisy, strict=True)]
    return found | _by_epochs("-".join(written))


def late(config: Any, share: float) -> dict[str, Any]:
    """Noise in the last ``share`` of the epochs alone, for methods whose noise costs no further pass.

    Raises:
        UserError: that many epochs are no whole number, or none, or all.
    """
    epochs = config.training.epochs
    noisy = round(epochs * share)
    if not 0 < noisy < epochs or not math.isclose(epochs * share, noisy):
        raise UserError(f"training.epochs: {share:g} of {epochs} is no whole number of epochs between none and all")
    return _by_epochs(f"{epochs - noisy}-{noisy}S")


def _by_epochs(phases: str) -> dict[str, Any]:
    """Phases in epochs, whatever unit the recipe's have."""
    return {"optim.noise_schedule": phases, "optim.noise_unit": "epoch"}


def with_restarts(config: Any, periods: int) -> dict[str, Any]:
    """Cosines with warm restarts (SGDR), each period twice as long as the one before, that end with the training."""
    first = math.ceil(config.training.epochs / (2**periods - 1))
    return {"optim.lr_schedule": "sgdr", "optim.lr_period": first, "optim.lr_multiplier": 2}


def _over(optim: OptimConfig, old: int, new: int) -> dict[str, Any]:
    """``new`` epochs in place of ``old``, with the same course of rate and noise. A cosine has it by itself."""
    settings: dict[str, Any] = {"training.epochs": new}
    if optim.lr_warmup is not None:
        settings["optim.lr_warmup"] = max(1, round(optim.lr_warmup * new / old))
    if optim.lr_schedule == "steps":
        settings["optim.lr_milestones"] = [round(epoch * new / old) for epoch in optim.lr_milestones]
    elif optim.lr_schedule == "sgdr":
        settings["optim.lr_period"] = max(1, round(optim.lr_period * new / old))
    elif optim.lr_schedule == "zaremba":
        # zaremba_decay keeps the full rate for one epoch more than its setting says.
        constant = max(0, round((optim.lr_constant_epochs + 1) * new / old) - 1)
        falls, new_falls = old - 1 - optim.lr_constant_epochs, new - 1 - constant
        settings["optim.lr_constant_epochs"] = constant
        if falls > 0 and new_falls > 0:
            settings["optim.lr_divisor"] = optim.lr_divisor ** (falls / new_falls)
    if optim.noise_schedule is not None:  # in epochs or steps: a step is the same share of both
        ends = [round(end * new / old) for end in schedules.phase_ends(optim.noise_schedule)]
        kinds = ["S" * part.strip().endswith("S") for part in optim.noise_schedule.split("-")]
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        settings["optim.noise_schedule"] = "-".join(map("{}{}".format, lengths, kinds))
    if optim.noise_ramp is not None:
        settings["optim.noise_ramp"] = [round(time * new / old) for time in optim.noise_ramp]
    return settings


def _split(total: int, shares: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to ``shares`` whose sum is ``total``."""
    whole = sum(shares)
    ends = [round(total * end / whole) if whole else 0 for end in accumulate(shares)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _times(key: str) -> Callable[[Any, float], dict[str, Any]]:
    """A setting of ``optim`` multiplied, without the last digits that a multiplication leaves."""
    return lambda config, factor: {f"optim.{key}": float(f"{getattr(config.optim, key) * factor:.6g}")}


# Settings relative to the recipe's: (its configuration, value) -> settings under dotted keys.
RELATIVE: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "noise": _times("noise"),
    "lr": _times("lr"),
    "epochs": scaled,
    "phases": in_phases,
    "late": late,
    "periods": with_restarts,
}
