"""What the study of escape simulates: its cells by name, each a simulation that takes seconds, or a minute."""

import dataclasses
import zlib
from itertools import product
from typing import Any

from escape_network import Training
from escape_regression import Regression
from escape_valley import Valley

Cell = Valley | Regression | Training
LEVELS = (1.2, 1.5, 2.0, 3.0, 4.0)  # of L/L*, in networks


def cells(quick: bool, seed: int) -> dict[str, Cell]:
    """All of them by name, in the order in which they are made; every one has random numbers of its own."""
    found = {**valley_cells(quick), **regression_cells(quick), **network_cells(quick)}
    return {name: dataclasses.replace(cell, seed=_seed(name, seed)) for name, cell in found.items()}


def _seed(name: str, seed: int) -> int:
    return zlib.crc32(f"{seed} {name}".encode())


def valley_cells(quick: bool) -> dict[str, Valley]:
    found: dict[str, Valley] = {}
    common = {"particles": 300, "time": 10.0, "every": 10} if quick else {"particles": 1000, "time": 30.0, "every": 10}
    # formula against simulation: the axes of temperature and of sharpness
    for strength in (6.5, 8.0) if quick else (4.5, 5.5, 6.5, 8.0):
        found[f"valley/white/{strength:g}"] = Valley("white", strength, **common)
    for k in (3.0,) if quick else (0.75, 1.5, 3.0):
        found[f"valley/white/6.5/k{k:g}"] = Valley("white", 6.5, k, **common)
    for strength in (0.33, 0.45) if quick else (0.25, 0.33, 0.45):
        found[f"valley/minibatch/{strength:g}"] = Valley("minibatch", strength, **common)
    for k in (1.5,) if quick else (0.75, 1.25, 1.5):
        found[f"valley/minibatch/0.33/k{k:g}"] = Valley("minibatch", 0.33, k, **common)
    # S-SGD on top of minibatch noise, and alone
    for method, level in product(("pair", "one-sided"), (0.4,) if quick else (0.2, 0.4, 0.6)):
        name = f"valley/minibatch/0.33/{method}/{level:g}"
        found[name] = Valley("minibatch", 0.33, method=method, level=level, **{**common, "time": 10.0})
    alone = {"end": -1.0, "time": 10.0, "particles": 100 if quick else 200}
    arms = (
        ("pair", "rademacher", 0.005),
        ("one-sided", "rademacher", 0.005),
        ("one-sided", "rademacher", 0.05),
        ("pair", "gaussian", 0.02),
        ("one-sided", "gaussian", 0.02),
    )
    sizes = (1.2, 1.38, 1.45) if quick else (0.8, 1.0, 1.2, 1.3, 1.38, 1.4, 1.45)
    for (method, distribution, step), level in product(arms, sizes):
        found[f"valley/alone/{method}/{distribution}/{step:g}/{level:g}"] = Valley(
            method=method, level=level, distribution=distribution, step=step, **alone
        )
    # ‖n‖ = c·‖w‖ of the weights at every step, which shrink with the noise; and many coordinates at once
    for level in (0.51, 3.9, 4.1) if quick else (0.51, 1.0, 2.0, 3.9, 4.1):
        settings = {"relative": True, "step": 2e-4, "end": -0.3, "time": 1.5 if quick else 2.0, "particles": 10}
        found[f"valley/relative/pair/{level:g}"] = Valley(method="pair", level=level, **settings)
    if not quick:
        for method, level in product(("pair", "one-sided"), (0.36, 0.51, 0.8)):
            found[f"valley/rotated/{method}/{level:g}"] = Valley(
                method=method, level=level, relative=True, dimensions=10, step=0.02, **alone
            )
            found[f"valley/rotated_fixed/{method}/{level:g}"] = Valley(
                method=method, level=level * 2.7468, dimensions=10, step=0.02, **alone
            )
    return found


def regression_cells(quick: bool) -> dict[str, Regression]:
    found = {}
    count, time = (300, 200.0) if quick else (1000, 1000.0)
    one, five = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0), (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
    settings = [(1, 0.3, 1, "minibatch"), (1, 0.3, 1, "constant"), (5, 0.1, 1, "minibatch"), (5, 0.1, 1, "constant")]
    settings += [(5, 0.4, 4, "minibatch")]
    if not quick:
        settings += [(1, 0.6, 2, "minibatch"), (5, 0.2, 2, "minibatch"), (5, 0.1, 2, "minibatch")]
    for d, rate, batch, noise in settings:
        levels = one if d == 1 else five
        found[f"regression/d{d}/{rate:g}_{batch}/{noise}"] = Regression(d, rate, batch, noise, levels, time, count)
    return found


def network_cells(quick: bool) -> dict[str, Training]:
    found: dict[str, Training] = {}
    data = {"cancer": ("cancer", 6, 0, 0.5, 16)}
    if not quick:
        data |= {"cancer2": ("cancer", 6, 2, 0.5, 16), "wine": ("wine", 6, 0, 0.5, 4)}
    count, time = (32, 100.0) if quick else (128, 1000.0)

    def add(name: str, key: str, noise: str = "minibatch", **changes: Any) -> None:
        cell = Training(*data[key], noise, LEVELS, time, count)
        found[name] = dataclasses.replace(cell, **changes)

    for key in data:
        add(f"network/{key}/none", key)
        levels = (0.1, 0.2, 0.3, 0.5) if key == "cancer" and not quick else (0.3,)
        for level, method in product(levels, ("one-sided", "pair", "halves")):
            add(f"network/{key}/{method}/{level:g}", key, method=method, level=level)
        few = {"time": 40.0, "particles": 16} if quick else {"time": 400.0, "particles": 32}
        if key == "cancer":
            for noise in ("constant", "white"):
                add(f"network/{key}/{noise}", key, noise, **({"particles": 16} if quick else {"particles": 64}))
            for level, method in product((0.3,) if quick else (0.3, 0.6), ("one-sided", "pair")):
                add(f"network/{key}/full/{method}/{level:g}", key, "none", method=method, level=level, **few)
            for rate, batch in ((0.25, 8),) if quick else ((0.25, 8), (1.0, 32), (0.25, 16), (1.0, 16)):
                add(f"network/{key}/ratio/{rate:g}_{batch}", key, rate=rate, batch=batch)
    return found
