"""Log-mel features against Kaldi's, and that neither they nor the augmentations see a minibatch's padding."""

import importlib
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from seqssgd.errors import UserError
from seqssgd.speech import torchaudio_import
from seqssgd.speech.features import LogMel, SpecAugment, SpeedPerturbation
from seqssgd.speech.torchaudio_import import import_torchaudio

LENGTHS = [16_000, 399, 400, 23_456, 0, 8_001, 4_000, 560, 561, 12_345, 719, 720, 16_001, 9_999, 20_000, 7_777]


def noises(lengths, beyond=0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms of these lengths in one batch, with something else after them."""
    waves = torch.full((len(lengths), max(lengths)), beyond)
    for row, length in enumerate(lengths):
        waves[row, :length] = 0.1 * torch.randn(length).cumsum(0).sin()
    return waves, torch.tensor(lengths)


# ---- torchaudio ------------------------------------------------------------------------------------------------------


def test_torchaudio_comes_with_or_without_its_extension():
    torchaudio = import_torchaudio()
    assert torchaudio.transforms.Resample(3, 2)(torch.ones(1, 30)).shape == (1, 20)
    assert sys.modules["torchaudio"] is torchaudio is import_torchaudio()


def test_a_torchaudio_that_is_missing_or_broken_is_one_error_that_says_what_to_install(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def broken(name):
        raise OSError("libfoo.so: cannot open\nmore")

    for failure, reason in (
        (absent, "torchaudio is not installed"),
        (broken, r"cannot be imported .*libfoo\.so"),
    ):
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, "torchaudio._extension", None)  # put back as it was afterwards
            patch.setattr(importlib, "import_module", failure)
            with pytest.raises(UserError, match=rf"{reason}.*: pip install 'seqssgd\[recipes\]'$"):
                torchaudio_import.import_torchaudio.__wrapped__()
    assert import_torchaudio() is importlib.import_module("torchaudio")


def test_an_extension_that_does_not_load_is_done_without():
    program = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "torchaudio._extension": raise OSError("libc10_cuda.so: no such file")
sys.meta_path.insert(0, Broken())
from seqssgd.speech.features import LogMel
import torch
assert LogMel().eval()(torch.zeros(1, 400), torch.tensor([400]))[0].shape == (1, 1, 80)
import torchaudio
try: torchaudio.functional.forced_align(torch.zeros(1, 4, 3), torch.ones(1, 2, dtype=torch.int32))
except RuntimeError as error: print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert "without its C++ extension" in result.stdout


# ---- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, options",
    [
        ({}, {}),
        ({"bins": 40, "low": 60.0, "high": -400.0, "preemphasis": 0.0}, {}),
        ({"rate": 8_000, "bins": 23, "window": 0.02, "hop": 0.008}, {"frame_length_ms": 20.0, "frame_shift_ms": 8.0}),
    ],
    ids=["default", "other filters", "8 kHz"],
)
def test_features_are_those_of_kaldi(settings, options):
    knf = pytest.importorskip("kaldi_native_fbank")
    front_end = LogMel(**settings, normalization="none").eval()
    config = knf.FbankOptions()
    frame = config.frame_opts
    frame.samp_freq, frame.dither, frame.remove_dc_offset = front_end.rate, 0.0, False
    frame.preemph_coeff, frame.window_type, frame.snip_edges = front_end.preemphasis, "povey", True
    for name, value in options.items():
        setattr(frame, name, value)
    config.mel_opts.num_bins = front_end.output_size
    config.mel_opts.low_freq, config.mel_opts.high_freq = settings.get("low", 20.0), settings.get("high", 0.0)
    waves, lengths = noises([5_000, 16_003])
    waves[1, 3_000:6_000] = 0.0  # digital silence, where only the floor is left
    features, frames = front_end(waves, lengths)
    for row, length in enumerate(lengths):
        kaldi = knf.OnlineFbank(config)
        kaldi.accept_waveform(front_end.rate, waves[row, :length].tolist())
        kaldi.input_finished()
        expected = torch.stack([torch.from_numpy(kaldi.get_frame(i)) for i in range(kaldi.num_frames_ready)])
        assert frames[row] == len(expected)
        torch.testing.assert_close(features[row, : frames[row]], expected, rtol=1e-4, atol=5e-4)


def test_energies_are_those_of_a_spectrogram_by_torchaudio():
    waves, lengths = noises([4_000, 4_000])
    front_end = LogMel(normalization="none", preemphasis=0.0).eval()
    margin = (512 - 400) // 2  # torch.stft puts the window in the middle of the zero-padded frame
    spectrogram = import_torchaudio().transforms.Spectrogram(
        512, 400, 160, window_fn=lambda n: torch.hann_window(n, periodic=False) ** 0.85, center=False
    )
    energies = spectrogram(F.pad(waves, (margin, margin))).transpose(1, 2) @ front_end.filters
    torch.testing.assert_close(
        front_end(waves, lengths)[0], energies.clamp(min=1.1920929e-7).log(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("normalization", ["utterance", "global", "none"])
def test_an_utterance_gets_the_same_features_in_a_batch_of_16_as_alone(normalization):
    front_end = LogMel(normalization=normalization).eval()
    waves, lengths = noises(LENGTHS, beyond=float("nan"))  # nothing beyond an utterance is looked at
    if normalization == "global":
        front_end.measure([noises([8_000, 9_000])])
    features, frames = front_end(waves, lengths)
    assert features.dtype == torch.float32 and features.isfinite().all()
    for row, length in enumerate(LENGTHS):
        alone, (count,) = front_end(waves[row : row + 1, :length], lengths[row : row + 1])
        assert frames[row] == count == front_end.frames(length) == max(0, 1 + (length - 400) // 160)
        torch.testing.assert_close(features[row, :count], alone[0, :count], rtol=1e-5, atol=1e-5)
        assert not features[row, count:].any() and not alone[0, count:].any()


def test_a_long_batch_that_is_cut_for_the_cache_is_computed_as_a_whole():
    waves, lengths = noises([90_000, 30_000, 80_000])
    whole = LogMel().eval()(waves, lengths)[0]
    waves, lengths = torch.cat([waves] * 5), lengths.repeat(5)
    torch.testing.assert_close(LogMel().eval()(waves, lengths)[0], whole.repeat(5, 1, 1), rtol=1e-5, atol=1e-5)


def test_an_utterance_is_normalised_to_mean_0_and_variance_1_in_every_feature():
    features, frames = LogMel().eval()(*noises([9_000, 17_000, 400]))
    for row in range(2):
        own = features[row, : frames[row]].double()
        torch.testing.assert_close(own.mean(0), torch.zeros(80, dtype=torch.float64), rtol=0, atol=1e-5)
        torch.testing.assert_close(own.var(0, correction=0), torch.ones(80, dtype=torch.float64), rtol=0, atol=1e-4)
    assert frames[2] == 1 and not features[2].any()  # a single frame has no variance


def test_global_statistics_are_those_of_all_frames_and_are_saved_with_the_module():
    batches = [noises([9_000, 4_000]), noises([300, 6_000, 5_000])]
    front_end, plain = LogMel(normalization="global"), LogMel(normalization="none")
    with pytest.raises(UserError, match=r"no statistics yet; call measure\(\)"):
        front_end(*batches[0])
    with pytest.raises(UserError, match="no audio"):
        front_end.measure([noises([300])])
    front_end.measure(batches)
    frames = torch.cat([f[:n] for batch in batches for f, n in zip(*plain(*batch), strict=True)])
    torch.testing.assert_close(front_end.mean, frames.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(front_end.std, frames.std(0, correction=0), rtol=1e-4, atol=1e-4)
    again = LogMel(normalization="global")
    again.load_state_dict(front_end.state_dict())
    features, lengths = again(*batches[0])
    torch.testing.assert_close(features[0], (plain(*batches[0])[0][0] - front_end.mean) / front_end.std)
    assert not plain.state_dict()  # nothing else is worth a place in a checkpoint


def test_autocast_does_not_blur_the_features():
    batch = noises([9_000])
    front_end = LogMel().eval()
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = front_end(*batch)
    assert features.dtype == torch.float32 and torch.equal(features, front_end(*batch)[0])


def test_dither_is_drawn_from_the_global_generator_and_only_in_training():
    waves, lengths = torch.zeros(1, 16_000), torch.tensor([16_000])
    front_end = LogMel(dither=1.0, normalization="none", preemphasis=0.0)
    torch.manual_seed(1)
    noisy = front_end(waves, lengths)[0]
    torch.manual_seed(1)
    assert torch.equal(noisy, front_end(waves, lengths)[0]) and not torch.equal(noisy, front_end(waves, lengths)[0])
    louder = LogMel(dither=100.0, normalization="none", preemphasis=0.0)(waves, lengths)[0]
    assert (louder - noisy)[..., 40:].mean().item() == pytest.approx(2 * torch.tensor(100.0).log().item(), abs=0.5)
    state = torch.get_rng_state()
    assert (front_end.eval()(waves, lengths)[0] == torch.tensor(1.1920929e-7).log()).all()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "bad",
    [{"bins": 3}, {"bins": 300}, {"hop": 0.0}, {"window": 0.0}, {"low": -1.0}, {"high": 9_000.0}, {"high": -8_000.0}]
    + [{"preemphasis": 1.1}, {"dither": -1.0}, {"normalization": "speaker"}],
    ids=str,
)
def test_impossible_front_ends_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LogMel(**bad)


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_masks_are_spans_within_the_utterance_of_at_most_the_largest_width_at_every_place():
    torch.manual_seed(0)
    lengths = torch.tensor([10, 40, 25] * 400)
    features = torch.randn(len(lengths), 40, 12)
    inside = torch.arange(40) < lengths[:, None]
    features = features.masked_fill(~inside[..., None], 0.0)
    settings = {"time_masks": 1, "time_width": 6, "time_share": 0.2, "frequency_masks": 1, "frequency_width": 5}
    masked = SpecAugment(**settings)(features, lengths)
    widths, places, bands = {10: set(), 40: set(), 25: set()}, {10: set(), 40: set(), 25: set()}, set()
    for row, length in enumerate(lengths.tolist()):
        changed = masked[row] != features[row]
        mean = features[row, :length].mean()
        assert torch.isclose(masked[row][changed], mean, atol=1e-6).all()
        frames, columns = changed.all(1).nonzero()[:, 0].tolist(), changed[:length].all(0).nonzero()[:, 0].tolist()
        assert frames == list(range(frames[0], frames[-1] + 1)) if frames else True
        assert columns == list(range(columns[0], columns[-1] + 1)) if columns else True
        time, band = torch.zeros(40, 1, dtype=torch.bool), torch.zeros(12, dtype=torch.bool)
        time[frames], band[columns] = True, True
        assert torch.equal(changed, (time | band) & inside[row][:, None])
        widths[length].add(len(frames))
        places[length].update(frames)
        bands.add(len(columns))
    assert widths == {10: {0, 1, 2}, 25: set(range(6)), 40: set(range(7))}
    assert all(places[length] == set(range(length)) for length in places)
    assert bands == set(range(6))


def test_masks_do_not_depend_on_the_padding():
    lengths = torch.tensor([30, 17, 44])
    features = torch.randn(3, 44, 20)
    torch.manual_seed(5)
    masked = SpecAugment(2, 9, 0.5, 2, 6)(features, lengths)
    torch.manual_seed(5)
    longer = SpecAugment(2, 9, 0.5, 2, 6)(F.pad(features, (0, 0, 0, 30), value=7.0), lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(masked[row, :length], longer[row, :length])
    assert (longer[:, 44:] == 7.0).all()


def test_several_masks_are_drawn_one_by_one():
    torch.manual_seed(0)
    features = torch.randn(300, 60, 4)
    masked = SpecAugment(3, 4, 1.0, 0, 0)(features, torch.full((300,), 60))
    counts = (masked != features).all(2).sum(1)
    assert counts.max() > 8 and counts.double().mean().item() == pytest.approx(3 * 2, abs=0.8)  # widths 0 … 4, few meet


@pytest.mark.parametrize("bad", [{"time_masks": -1}, {"time_share": 1.5}, {"frequency_width": -2}], ids=str)
def test_impossible_masks_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SpecAugment(**bad)


# ---- speed -----------------------------------------------------------------------------------------------------------


def test_a_tone_played_faster_is_shorter_and_higher():
    time = torch.arange(16_000) / 16_000
    waves = torch.sin(2 * torch.pi * 400 * time).repeat(8, 1)
    for factor in (0.9, 1.1):
        faster, lengths = SpeedPerturbation([factor])(waves, torch.full((8,), 16_000))
        assert lengths.tolist() == [-(-16_000 * 100 // round(100 * factor))] * 8
        middle = faster[0, 500:-500]
        expected = torch.sin(2 * torch.pi * 400 * factor * torch.arange(500, lengths[0] - 500) / 16_000)
        torch.testing.assert_close(middle, expected, rtol=0, atol=2e-2)


def test_every_utterance_gets_a_speed_of_its_own_and_none_sees_the_padding():
    torch.manual_seed(0)
    perturb = SpeedPerturbation((0.8, 1.0, 1.25))
    lengths = torch.arange(2_000, 5_000, 100)
    waves = noises(lengths.tolist(), beyond=float("nan"))[0]
    state = torch.get_rng_state()
    faster, new = perturb(waves, lengths)
    torch.set_rng_state(state)
    factors = torch.tensor(perturb.factors)[torch.randint(3, (len(lengths),))]  # the only draw
    assert len(set(factors.tolist())) == 3
    for row, (length, factor) in enumerate(zip(lengths, factors, strict=True)):
        alone, count = SpeedPerturbation([factor.item()])(waves[row : row + 1, :length], length[None])
        assert new[row] == count == round((length / factor.double()).ceil().item())
        torch.testing.assert_close(faster[row, : new[row]], alone[0], rtol=1e-5, atol=1e-6)
        assert not faster[row, new[row] :].any()
    assert faster.shape[1] >= new.max()
    shortest = torch.tensor([perturb.shortest(length) for length in lengths.tolist()])
    assert torch.equal(shortest[factors == 1.25], new[factors == 1.25]) and (shortest <= new).all()


def test_augmentation_is_off_in_evaluation_mode_and_draws_nothing():
    waves, lengths = noises([3_000, 2_000])
    features, frames = torch.randn(2, 9, 5), torch.tensor([9, 4])
    state = torch.get_rng_state()
    assert SpeedPerturbation().eval()(waves, lengths)[0] is waves
    assert SpeedPerturbation([1.0])(waves, lengths)[0] is waves
    assert SpecAugment().eval()(features, frames) is features
    assert SpecAugment(0, 9, 0.1, 0, 9)(features, frames) is features
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("factors", [(), (0.1,), (1.0, 3.0)])
def test_speeds_that_are_none_are_refused(factors):
    with pytest.raises(ValueError, match="speeds between"):
        SpeedPerturbation(factors)
