"""From waveforms to features, batched, on the model's device: log-mel filter banks, and augmentation in training.

Waveforms are (B, N) samples in [-1, 1] and features (B, T, F), each with its lengths (B,). What an utterance becomes
never depends on how much padding its minibatch brings, and beyond its length there are zeros. All randomness is that of
torch's global generators, which a checkpoint holds, and there is none in evaluation mode.
"""

from collections.abc import Iterable
from fractions import Fraction
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..models.masks import frame_mask
from .torchaudio_import import import_torchaudio

NORMALIZATIONS = ("utterance", "global", "none")
FLOOR = torch.finfo(torch.float32).eps  # of mel energies, as Kaldi's; about that of noise in the last of 16 bits
CACHED = 80_000  # samples at a time on a CPU; what they become on the way then stays in its cache


class LogMel(nn.Module):
    """Logarithms of mel filter bank energies, as Kaldi computes them.

    Frames are cut without padding at the ends, so T = 1 + (N - window) // hop, and 0 for less than one window. They are
    pre-emphasised, weighted by Povey's window and zero-padded to a power of two for the Fourier transform. Unlike
    Kaldi's default, a frame's mean is not subtracted: little of it passes the pre-emphasis and the filters.

    Args:
        rate: samples per second of the waveforms.
        bins: mel filters F.
        window: length of a frame in seconds.
        hop: from the start of a frame to that of the next, in seconds.
        low: lower edge of the lowest filter in Hz.
        high: upper edge of the highest filter in Hz; 0 or less counts from half the sampling rate.
        preemphasis: how much of a sample is subtracted from the next.
        dither: standard deviation of noise that is added in training, in steps of 16-bit samples.
        normalization: ``"utterance"`` gives every feature mean 0 and variance 1 within the utterance, ``"global"``
            over the training set (see :meth:`measure`), ``"none"`` leaves the logarithms as they are.

    Raises:
        UserError: torchaudio is not installed.
        ValueError: a setting that makes no sense.
    """

    povey: Tensor  # (window,)
    filters: Tensor  # (fft_size // 2 + 1, F)
    mean: Tensor  # (F,), of normalization "global", as is
    std: Tensor

    def __init__(
        self,
        rate: int = 16_000,
        bins: int = 80,
        window: float = 0.025,
        hop: float = 0.010,
        low: float = 20.0,
        high: float = 0.0,
        preemphasis: float = 0.97,
        dither: float = 0.0,
        normalization: str = "utterance",
    ) -> None:
        super().__init__()
        self.rate, self.output_size = rate, bins
        self.window, self.hop = round(rate * window), round(rate * hop)
        if bins < 4 or self.window < 2 or self.hop < 1:
            raise ValueError(
                f"bins={bins}, window={window}, hop={hop}: at least 4 bins, 2 samples and 1 sample are needed"
            )
        high = high if high > 0 else rate / 2 + high
        if not 0 <= low < high <= rate / 2:
            raise ValueError(f"low={low}, high={high}: filters must lie between 0 and {rate / 2} Hz, half the rate")
        if not 0 <= preemphasis <= 1 or not dither >= 0:
            raise ValueError(f"preemphasis={preemphasis} must lie in [0, 1] and dither={dither} must not be negative")
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization={normalization!r} is not one of {', '.join(NORMALIZATIONS)}")
        self.preemphasis, self.dither, self.normalization = preemphasis, dither, normalization
        self.fft_size = 1 << (self.window - 1).bit_length()
        kaldi = import_torchaudio().compliance.kaldi
        filters, _ = kaldi.get_mel_banks(bins, self.fft_size, float(rate), low, high, 100.0, -500.0, 1.0)
        empty = int((filters.sum(1) == 0).sum())
        if empty:
            raise ValueError(
                f"bins={bins}: {empty} filters are narrower than the resolution of {rate / self.fft_size} Hz"
            )
        povey = torch.hann_window(self.window, periodic=False).pow(0.85)
        self.register_buffer("povey", povey, persistent=False)
        self.register_buffer("filters", F.pad(filters, (0, 1)).T.contiguous(), persistent=False)
        if normalization == "global":
            self.register_buffer("mean", torch.full((bins,), torch.nan))
            self.register_buffer("std", torch.full((bins,), torch.nan))
            self._measured = False

    @overload
    def frames(self, samples: int) -> int: ...

    @overload
    def frames(self, samples: Tensor) -> Tensor: ...

    def frames(self, samples: int | Tensor) -> int | Tensor:
        """The frames of so many samples: a number for a number, a tensor for a tensor."""
        frames = (samples - self.window) // self.hop + 1
        return frames.clamp(min=0) if isinstance(frames, Tensor) else max(frames, 0)

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, T, F), float32, and their lengths (B,), of waveforms (B, N) and their lengths (B,)."""
        with torch.autocast(waves.device.type, enabled=False):  # energies need more than 8 bits
            features, lengths = self.log_mel(waves, lengths)
            return self.normalize(features, lengths), lengths

    def normalize(self, features: Tensor, lengths: Tensor) -> Tensor:
        """What ``log_mel`` gave, normalised, with zeros beyond the lengths."""
        mask = frame_mask(lengths, features.shape[1])[..., None]
        if self.normalization == "utterance":
            count = lengths.clamp(min=1)[:, None, None]
            features = features.masked_fill(~mask, 0.0)
            features = features - features.sum(1, keepdim=True) / count
            variance = features.masked_fill(~mask, 0.0).square().sum(1, keepdim=True) / count
            features = features * variance.clamp(min=1e-10).rsqrt()
        elif self.normalization == "global":
            self._check_measured()
            features = (features - self.mean) / self.std
        return features.masked_fill(~mask, 0.0)

    def statistics(self, count: int, sums: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """What is to be subtracted from the features of one utterance, and what they are then to be multiplied by, to
        normalise them: each (F,), on the device.

        Args:
            count: frames of the utterance.
            sums: of its features over all frames (F,), in float64, before normalisation.
            squares: likewise of their squares.
        """
        device = self.povey.device
        if self.normalization == "utterance":
            mean = sums / count
            variance = (squares / count - mean.square()).clamp(min=1e-10)
            return mean.float().to(device), variance.rsqrt().float().to(device)
        if self.normalization == "global":
            self._check_measured()
            return self.mean, 1 / self.std
        return torch.zeros(self.output_size, device=device), torch.ones(self.output_size, device=device)

    def log_mel(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, before normalisation; whatever comes out beyond a length."""
        waves = waves.float()
        if self.training and self.dither:
            waves = waves + torch.randn_like(waves) * (self.dither / 2**15)
        if self.preemphasis:  # the first sample of a frame has weight 0, so its predecessor does not matter
            waves = torch.cat([waves[:, :1], waves[:, 1:] - self.preemphasis * waves[:, :-1]], dim=1)
        waves = F.pad(waves, (0, max(self.window - waves.shape[1], 0)))
        rows = max(1, CACHED // waves.shape[1]) if waves.device.type == "cpu" else len(waves)
        return torch.cat([self._filter(part) for part in waves.split(max(rows, 1))]), self.frames(lengths)

    def _filter(self, waves: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(waves.unfold(1, self.window, self.hop) * self.povey, self.fft_size)
        energies = (spectrum.real.square() + spectrum.imag.square()) @ self.filters
        return energies.clamp_(min=FLOOR).log_()

    @torch.no_grad()
    def measure(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Takes mean and standard deviation of every feature from waveforms (B, N) with lengths, for ``"global"``.

        Raises:
            UserError: there is not a single frame.
        """
        count = 0
        total = squares = torch.zeros(self.output_size, dtype=torch.float64, device=self.povey.device)
        for waves, lengths in batches:
            device = self.povey.device
            features, lengths = self.log_mel(waves.to(device), lengths.to(device))
            features = features[frame_mask(lengths, features.shape[1])].double()
            count, total, squares = count + len(features), total + features.sum(0), squares + features.square().sum(0)
        if not count:
            raise UserError("there is no audio to take the statistics of the features from")
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean.square()).clamp(min=1e-10).sqrt())

    def _check_measured(self) -> None:
        if not self._measured:
            if not bool((self.std > 0).all()):
                raise UserError("normalization 'global' has no statistics yet; call measure() on the training set")
            self._measured = True


class SpecAugment(nn.Module):
    """Sets stretches of frames and bands of features to the utterance's mean, in training (Park et al. 2019).

    The widths of masks are uniform from 0 up to the largest, and so are their places within the utterance. There is no
    time warping.

    Args:
        time_masks: how many in every utterance.
        time_width: the largest, in frames.
        time_share: the largest, as a share of the utterance, if that is less.
        frequency_masks: how many in every utterance.
        frequency_width: the largest, in features.

    Raises:
        ValueError: a negative number, or a share above 1.
    """

    def __init__(
        self,
        time_masks: int = 2,
        time_width: int = 50,
        time_share: float = 0.2,
        frequency_masks: int = 2,
        frequency_width: int = 27,
    ) -> None:
        super().__init__()
        sizes = {"time_masks": time_masks, "time_width": time_width, "time_share": time_share}
        for name, value in {**sizes, "frequency_masks": frequency_masks, "frequency_width": frequency_width}.items():
            if value < 0 or (name == "time_share" and value > 1):
                raise ValueError(f"{name}={value}: it must not be negative, and a share not above 1")
        self.time_masks, self.time_width, self.time_share = time_masks, time_width, time_share
        self.frequency_masks, self.frequency_width = frequency_masks, frequency_width

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The features (B, T, F) of utterances with ``lengths`` (B,) frames, masked; as they are in evaluation mode."""
        if not self.training or not (self.time_masks or self.frequency_masks):
            return features
        inside = frame_mask(lengths, features.shape[1])[..., None]
        sizes = torch.full_like(lengths, features.shape[2])
        time = self._masks(self.time_masks, (self.time_share * lengths).clamp(max=self.time_width), lengths)
        frequency = self._masks(self.frequency_masks, sizes.clamp(max=self.frequency_width), sizes)
        masked = _spans(*time, features.shape[1])[:, :, None] | _spans(*frequency, features.shape[2])[:, None, :]
        mean = features.masked_fill(~inside, 0.0).mean((1, 2)) * (features.shape[1] / lengths.clamp(min=1))
        return torch.where(masked & inside, mean[:, None, None].to(features.dtype), features)

    def _masks(self, count: int, largest: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """First and last + 1 of ``count`` masks per utterance, (B, count); padding has no part in what is drawn."""
        draws = torch.rand(2, len(sizes), count, device=sizes.device)
        widths = (draws[0] * (largest.floor()[:, None] + 1)).floor()
        starts = (draws[1] * (sizes[:, None] - widths + 1)).floor()
        return starts, starts + widths


class SpeedPerturbation(nn.Module):
    """Plays every utterance at a speed drawn for it, pitch and all, in training (Ko et al. 2015).

    Args:
        factors: the speeds to choose from, each as likely as the others.

    Raises:
        UserError: torchaudio is not installed.
        ValueError: no factors, or one outside [0.5, 2].
    """

    def __init__(self, factors: Iterable[float] = (0.9, 1.0, 1.1)) -> None:
        super().__init__()
        self.factors = tuple(factors)
        if not self.factors or not all(0.5 <= factor <= 2 for factor in self.factors):
            raise ValueError(f"factors={self.factors}: speeds between 0.5 and 2 are needed")
        self.ratios = [Fraction(factor).limit_denominator(100) for factor in self.factors]
        resample = import_torchaudio().transforms.Resample
        self.resamplers = nn.ModuleList(resample(ratio.numerator, ratio.denominator) for ratio in self.ratios)

    def shortest(self, samples: int) -> int:
        """The samples that the highest speed leaves of so many."""
        fastest = max(self.ratios)
        return -(-samples * fastest.denominator // fastest.numerator)

    def forward(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, N') with their lengths (B,), for those of normal speed; these themselves in evaluation mode."""
        if not self.training or set(self.ratios) == {1}:
            return waves, lengths
        chosen = torch.randint(len(self.factors), (len(waves),))
        waves = waves.masked_fill(~frame_mask(lengths, waves.shape[1]), 0.0)  # a resampler looks beyond the end
        parts, new_lengths = [], torch.empty_like(lengths)
        for index in chosen.unique().tolist():
            rows = (chosen == index).nonzero()[:, 0].to(waves.device)
            ratio = self.ratios[index]
            new_lengths[rows] = -(-lengths[rows] * ratio.denominator // ratio.numerator)
            parts.append((rows, self.resamplers[index](waves[rows])))
        result = waves.new_zeros(len(waves), max(part.shape[1] for _, part in parts))
        for rows, part in parts:
            result[rows, : part.shape[1]] = part
        return result.masked_fill(~frame_mask(new_lengths, result.shape[1]), 0.0), new_lengths


def _spans(starts: Tensor, ends: Tensor, size: int) -> Tensor:
    """(B, size): whether a place lies in any of the spans, (B, count)."""
    places = torch.arange(size, device=starts.device)
    return ((places >= starts[..., None]) & (places < ends[..., None])).any(1)
