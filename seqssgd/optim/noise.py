"""How one perturbation is drawn."""

import math
import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from .limits import check_settings
from .processes import extremes, world_size
from .sharding import check_shards, is_sharded, local, shard_index, sum_over_shards

Distribution = Literal["rademacher", "gaussian", "uniform"]
Norm = Literal["tensor", "layer", "filter"]  # the granularities that fix a norm
Granularity = Literal[Norm, "filter_std", "absolute"]
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)
NORMS: tuple[Norm, ...] = get_args(Norm)
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)
_STANDARD_DEVIATION = {"rademacher": 1.0, "gaussian": 1.0, "uniform": 1 / math.sqrt(3)}


class NoiseSource:
    """A private stream of perturbations: perturbation ``draw`` is a pure function of ``seed`` and ``draw``.

    So a perturbation can be drawn again (with the other sign, for another micro-batch, after a restart) without being
    stored, ranks with one seed draw the same noise, and the global random state is never touched.

    Args:
        distribution: of the elements before they are scaled: ``rademacher`` ±1, ``gaussian``, ``uniform`` on [-1, 1].
        granularity: what the size of n is measured by. ‖n‖ = level·‖w‖ exactly, over each ``tensor``, over each
            ``layer`` (the tensors whose layer names are equal, so that an LSTM layer's input and recurrent kernels
            count as one) or over each ``filter`` (slice along dimension 0). Or from elements z as they were drawn:
            n = level·‖w_f‖·z with the norm of the element's filter (``filter_std``), n = level·z (``absolute``).
        seed: any integer.

    Raises:
        ValueError: an unknown distribution or granularity, or a seed that is no whole number.
    """

    def __init__(self, distribution: Distribution = "rademacher", granularity: Granularity = "layer", seed: int = 0):
        check_settings(NoiseSource, distribution=distribution, granularity=granularity)
        if isinstance(seed, bool) or not hasattr(seed, "__index__"):
            raise ValueError(f"seed={seed!r}: give a whole number")
        self.distribution, self.granularity, self.seed = distribution, granularity, operator.index(seed)
        self._generators: dict[torch.device, torch.Generator] = {}
        self._agreed = False  # whether all processes were found to have one seed

    def __getstate__(self) -> dict:  # generators cannot be copied, and hold nothing that seed and draw do not tell
        return {**self.__dict__, "_generators": {}}

    def add_(
        self,
        weights: Sequence[Tensor],
        saved: Sequence[Tensor],
        levels: Sequence[float | Tensor],
        layers: Sequence[str],
        draw: int,
        shape: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        """Sets ``weights`` to ``saved`` + n, the size of n as the granularity says.

        Args:
            weights: written to. While the norms are taken they hold the unscaled noise, so that none is stored.
            saved: copies of the same weights (of the local shards, for DTensors).
            levels: one noise level for each weight; tensors, of no dimensions, are not waited for.
            layers: one layer name for each weight.
            draw: which perturbation of the stream.
            shape: what changes the elements, in place, before n is scaled to its size; None: nothing does.

        Raises:
            ValueError: DTensors that are sharded otherwise than FSDP2 does.
        """
        pieces = self.fill_(weights, draw)
        if shape is not None:
            shape(pieces)
        if self.granularity == "absolute":
            scales = [w.new_ones(()) for w in saved]
        elif self.granularity == "filter_std":
            scales = [_per_filter(_filter_norms(w), w) for w in saved]
        elif self.granularity == "filter":
            scales = [
                _per_filter(_filter_norms(w) / _filter_norms(z).clamp_min(1e-30), w)
                for w, z in zip(saved, pieces, strict=True)
            ]
        else:
            scales = self._ratios(weights, saved, pieces, layers, flat=shape is None)
        for piece, w, scale, level in zip(pieces, saved, scales, levels, strict=True):
            if isinstance(level, Tensor):
                scale, level = scale * level.to(scale), 1.0
            torch.addcmul(w, piece, scale.to(w.dtype), value=level, out=piece)

    def fill_(self, weights: Sequence[Tensor], draw: int) -> list[Tensor]:
        """Fills ``weights`` with the unscaled noise of perturbation ``draw``; returns them (the local shards).

        Raises:
            ValueError: DTensors that are sharded otherwise than FSDP2 does.
        """
        check_shards(weights)
        pieces = [local(weight) for weight in weights]
        for shared_out in (False, True):  # weights that every rank holds whole are drawn alike on all
            mine = [piece for piece, weight in zip(pieces, weights, strict=True) if is_sharded(weight) == shared_out]
            self._seed(mine, draw, shard_index(weights) if shared_out else 0)
            for piece in mine:
                self._fill(piece)
        return pieces

    def check_processes(self, device: torch.device) -> None:
        """Checks, once, that all data-parallel processes draw the same: each must call this, and waits for the others.

        What they exchange is the mean of their gradients. Noise that other processes did not have is in it to a part
        only, so that their product would be that part of the curvature, or none of it.

        Args:
            device: of the weights.

        Raises:
            RuntimeError: their seeds differ; in all processes.
        """
        if self._agreed or world_size() == 1:
            return
        least, most = extremes(float(_mix(self.seed) >> 11), device)  # of whatever size, as 52 bits: exact
        if least != most:
            raise RuntimeError(
                "the curvature is estimated from noise that all data-parallel processes have in common, and the seeds "
                f"of their noise differ (here it is {self.seed}): give all of them one seed="
            )
        self._agreed = True

    def norm(self, weights: Sequence[Tensor], level: float) -> float:
        """‖n‖ over ``weights`` at their values of the moment; the root of its mean square where it is not fixed."""
        if self.granularity in NORMS:
            return level * norm_of(weights)
        scale = level * _STANDARD_DEVIATION[self.distribution]
        if self.granularity == "absolute":
            return scale * math.sqrt(sum(p.numel() for p in weights))
        sizes = [p.numel() / max(p.shape[0] if p.ndim else 1, 1) for p in weights]  # of the filters of each
        return scale * math.sqrt(sum(size * norm_of([p]) ** 2 for size, p in zip(sizes, weights, strict=True)))

    def _seed(self, tensors: Sequence[Tensor], draw: int, shard: int) -> None:
        # Devices count in order of appearance: rank 1's cuda:1 must draw what rank 0's cuda:0 draws.
        for order, device in enumerate(dict.fromkeys(tensor.device for tensor in tensors)):
            generator = self._generators.get(device)
            if generator is None:
                generator = self._generators[device] = torch.Generator(device)
            generator.manual_seed(_mix(self.seed, draw, shard, order))

    def _fill(self, tensor: Tensor) -> None:
        generator = self._generators[tensor.device]
        if self.distribution == "gaussian":
            tensor.normal_(generator=generator)
        elif self.distribution == "uniform":
            tensor.uniform_(-1, 1, generator=generator)
        elif tensor.is_contiguous():
            _random_signs_(tensor.view(-1), generator)
        else:
            tensor.copy_(_random_signs_(torch.empty_like(tensor.reshape(-1)), generator).view(tensor.shape))

    def _ratios(
        self, weights: Sequence, saved: Sequence, noise: Sequence, layers: Sequence[str], flat: bool
    ) -> list[Tensor]:
        """‖w‖/‖z‖ for each weight, as 0-dim tensors: nothing here waits for the device."""
        ratios: dict[int, Tensor] = {}
        for device in dict.fromkeys(w.device for w in saved):
            here = [i for i, w in enumerate(saved) if w.device == device]
            squares_w = sum_over_shards(_squared_norms([saved[i] for i in here]), [weights[i] for i in here])
            if self.distribution == "rademacher" and flat:
                squares_z = squares_w.new_tensor([noise[i].numel() for i in here])
            else:
                squares_z = _squared_norms([noise[i] for i in here])
            squares_z = sum_over_shards(squares_z, [weights[i] for i in here])
            if self.granularity == "layer":
                names = [layers[i] for i in here]
                number = {name: k for k, name in enumerate(dict.fromkeys(names))}
                index = torch.tensor([number[name] for name in names], device=device)
                total = torch.zeros(len(number), dtype=squares_w.dtype, device=device)
                squares_w = total.index_add(0, index, squares_w)[index]
                squares_z = total.index_add(0, index, squares_z)[index]
            for i, ratio in zip(here, (squares_w / squares_z.clamp_min(1e-30)).sqrt().unbind(), strict=True):
                ratios[i] = ratio
        return [ratios[i] for i in range(len(saved))]


@torch.no_grad()
def norm_of(weights: Sequence[Tensor]) -> float:
    """‖w‖ over all of ``weights``, over all their shards too."""
    norms = [torch.linalg.vector_norm(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in weights]
    return math.sqrt(sum((norm.full_tensor() if is_sharded(norm) else norm).item() ** 2 for norm in norms))


def _squared_norms(tensors: list[Tensor]) -> Tensor:
    """‖t‖² of each tensor, shape (len(tensors),), summed in at least float32."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    norms = [torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    return torch.stack([norm.to(dtype) for norm in norms]).square()


def _filter_norms(t: Tensor) -> Tensor:
    """‖t_f‖ of each filter f, shape (filters,), in at least float32."""
    dtype = torch.promote_types(t.dtype, torch.float32)
    return torch.linalg.vector_norm(t.flatten(1) if t.ndim > 1 else t.view(-1, 1), dim=1, dtype=dtype)


def _per_filter(values: Tensor, weight: Tensor) -> Tensor:
    """One value for each filter, shaped to broadcast against ``weight``."""
    return values.view(weight.shape[:1] + (1,) * (weight.ndim - 1))


@cache
def _sign_table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(256, 8): the eight bits of each byte as ±1."""
    bits = (torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1
    return (2 * bits - 1).to(device=device, dtype=dtype)


def _random_signs_(flat: Tensor, generator: torch.Generator) -> Tensor:
    """Fills a 1-D tensor with fair random signs, eight to a random byte: many times faster than drawing floats."""
    table = _sign_table(flat.device, flat.dtype)
    words = torch.empty(-(-flat.numel() // 64), dtype=torch.int64, device=flat.device)
    random_bytes = words.random_(-(2**63), None, generator=generator).view(torch.uint8)
    chunk = 2**15 if flat.device.type == "cpu" else 2**24  # bytes; on a CPU a chunk's indices stay in the cache
    whole = flat.numel() // 8
    for start in range(0, whole, chunk):
        index = random_bytes[start : min(start + chunk, whole)].int()
        torch.index_select(table, 0, index, out=flat[8 * start : 8 * (start + len(index))].view(-1, 8))
    if flat.numel() % 8:
        flat[8 * whole :] = table[random_bytes[whole].long()][: flat.numel() % 8]
    return flat


def _mix(*numbers: int) -> int:
    """A 63-bit seed in which every bit of every number matters (the SplitMix64 finaliser of Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1
