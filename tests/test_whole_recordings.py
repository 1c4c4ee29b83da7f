"""A recording is read to its end or refused: whatever its container says of its length is held against the file."""

import io
import itertools
import os
import struct

import numpy as np
import pytest
import soundfile
from sphere_files import speech_like, sphere

from seqssgd.data import audio
from seqssgd.data.audio import AudioError, decode, open_audio
from seqssgd.data.containers import NO_LENGTH
from seqssgd.data.mpeg import damage_heard
from seqssgd.data.ogg import checksum
from seqssgd.data.recording import Recording, resample
from seqssgd.data.resampling import resampled

SAMPLES = np.sin(np.arange(24_000) / 20) / 2 + np.random.default_rng(0).normal(size=24_000) / 100


def encoded(kind: str, subtype: str | None = None, samples: np.ndarray = SAMPLES, rate: int = 16_000, **how) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype, **how)
    return buffer.getvalue()


FORMS = {
    "WAV": encoded("WAV"), "WAV of 24 bits": encoded("WAV", "PCM_24"), "RF64": encoded("RF64"), "W64": encoded("W64"),
    "RIFX": encoded("WAV", endian="BIG"), "AIFF": encoded("AIFF"), "AIFF-C": encoded("AIFF", "FLOAT"),
    "8SVX": encoded("SVX", "PCM_16"), "AU": encoded("AU"), "little-endian AU": encoded("AU", endian="LITTLE"),
    "CAF": encoded("CAF"), "CAF with ALAC": encoded("CAF", "ALAC_16"), "VOC": encoded("VOC", "PCM_16"),
    "FLAC": encoded("FLAC"), "Vorbis": encoded("OGG", "VORBIS"), "Opus": encoded("OGG", "OPUS"), "MP3": encoded("MP3"),
    "AVR": encoded("AVR"), "MAT4": encoded("MAT4"), "MAT5": encoded("MAT5"), "MPC2K": encoded("MPC2K"),
    "WVE": encoded("WVE", "ALAW"), "SPHERE": sphere(speech_like(24_000)),
}  # fmt: skip
FOLLOWED = ["WAV", "RF64", "W64", "RIFX", "AIFF", "AU", "CAF", "VOC", "FLAC", "Vorbis", "Opus", "MP3"]


def refusal(data: bytes) -> str:
    with pytest.raises(AudioError) as raised:
        decode(data)
    return str(raised.value)


# ---- truncated and damaged -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_a_truncated_recording_is_not_taken_for_a_whole_one(name):
    data = FORMS[name]
    assert len(decode(data).samples) == 24_000 and decode(data).note is None
    for length in (len(data) // 3, len(data) // 2, len(data) - 700):
        assert refusal(data[:length])
    if name not in ("FLAC", "SPHERE", "CAF"):
        assert "cut off" in refusal(data[: len(data) // 2])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_one_flipped_bit_in_an_ogg_is_found(subtype):
    data = encoded("OGG", subtype)
    for position in np.random.default_rng(1).integers(0, len(data), 40):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(position % 8)
        assert refusal(bytes(damaged))


def test_an_ogg_without_one_of_its_pages_or_its_last_one_is_refused():
    data = encoded("OGG", "VORBIS", np.tile(SAMPLES, 5))
    starts = [i for i in range(len(data)) if data.startswith(b"OggS", i)]
    assert len(starts) > 3
    assert "its last page of Ogg is missing" in refusal(data[: starts[-1]])
    assert "pages of Ogg are missing" in refusal(data[: starts[2]] + data[starts[3] :])


def test_checksums_of_ogg_are_those_of_a_bit_by_bit_division():
    def divided(data: bytes) -> int:
        register = 0
        for byte in data:
            register ^= byte << 24
            for _ in range(8):
                register = (register << 1 ^ (0x04C11DB7 if register >> 31 else 0)) & 0xFFFFFFFF
        return register

    for data in (b"", b"\x00", b"\x80", bytes(range(256)), np.random.default_rng(0).bytes(1001)):
        assert checksum(data) == divided(data)


def test_a_flac_whose_samples_have_another_checksum_is_refused():
    data = encoded("FLAC")
    assert "another checksum" in refusal(data[:26] + bytes([data[26] ^ 1]) + data[27:])
    for kind, subtype in (("FLAC", "PCM_S8"), ("FLAC", "PCM_24")):
        assert len(decode(encoded(kind, subtype)).samples) == 24_000


def test_an_mp3_between_tags_is_whole_and_one_with_a_hole_is_not():
    data = FORMS["MP3"]
    tags = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10), b"TAG" + bytes(125)
    assert np.array_equal(decode(tags[0] + data + tags[1]).samples, decode(data).samples)
    middle = data.index(data[:2], len(data) // 2)
    assert "is damaged" in refusal(data[:middle] + b"hole" + data[middle:])


def test_what_the_decoder_of_mp3_finds_damaged_is_refused_and_not_said_elsewhere(capfd):
    """One of its bits is flipped: within a frame, and in the header of the last one, which then is of a free format."""
    data = bytearray(FORMS["MP3"])
    data[431] ^= 1
    assert refusal(bytes(data)) == "is damaged: dequantization failed (libmpg123)"
    last = bytearray(FORMS["MP3"])
    last[FORMS["MP3"].rindex(last[:2]) + 2] &= 0x0F
    assert "1 of" in refusal(bytes(last)) and "frames are missing" in refusal(bytes(last))
    first = FORMS["MP3"].index(FORMS["MP3"][:2], 2)
    second = FORMS["MP3"].index(FORMS["MP3"][:2], first + 2)
    for end in (b"", b"TAG" + bytes(125)):  # a single frame
        assert "cannot be decoded" in refusal(FORMS["MP3"][first:second] + end)
    assert capfd.readouterr() == ("", "")
    others = "Warning: of another thread\n\nNote: 1 of it\n a line\n"
    with damage_heard():
        os.write(2, f"Note: Trying to resync...\n{others}\nWarning: Big change. Frankenstein stream?\n".encode())
    assert capfd.readouterr().err == others


def test_headers_with_impossible_sizes_are_refused():
    wave, caf, mpeg = (bytearray(FORMS[name]) for name in ("W64", "CAF", "MP3"))
    wave[56:64] = b"\xff" * 8  # of the first chunk
    assert refusal(bytes(wave)).startswith("cannot be decoded")
    begin = caf.index(b"data") + 12
    for size in (-begin, -(2**62)):  # the samples end where the file begins, and before that
        caf[begin - 8 : begin] = size.to_bytes(8, signed=True)
        assert "ends before it begins" in refusal(bytes(caf))
    label = next(at for name in (b"Xing", b"Info") if (at := mpeg.find(name)) >= 0)
    for length in range(label, label + 20):
        assert refusal(bytes(mpeg[:length]))


# ---- more than one recording in a file -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLLOWED)
def test_audio_after_the_first_stream_is_read_too(name):
    data = FORMS[name]
    once, twice = decode(data), decode(data + data)
    assert np.array_equal(twice.samples, np.concatenate([once.samples, once.samples]))
    assert twice.rate == once.rate and twice.flac is None  # a joined file is none that others could read to its end


def test_streams_that_follow_on_each_other_keep_their_scale_and_need_one_rate():
    first, second = encoded("FLAC"), encoded("FLAC", "PCM_24")
    joined = decode(first + second).samples
    assert joined.dtype == np.int32
    assert np.array_equal(joined[:24_000] >> 16, decode(first).samples)
    assert np.array_equal(joined[24_000:], decode(second).samples)
    assert "other rates or channels" in refusal(first + encoded("FLAC", rate=8000))
    assert "another SPHERE file" in refusal(FORMS["SPHERE"] + FORMS["SPHERE"])
    header, body = FORMS["VOC"][:26], FORMS["VOC"][26:-1]
    assert "2 blocks of sound" in refusal(header + body + body + b"\0")


FIRST = ("WAV", "RF64", "W64", "AIFF", "AU", "CAF", "VOC", "Vorbis", "MP3", "FLAC")
SECOND = ("WAV", "AIFF", "FLAC", "Vorbis", "MP3", "SPHERE", "CAF", "AU", "VOC", "W64")
UNLIKE = [pair for pair in itertools.product(FIRST, SECOND) if pair[0] != pair[1] and pair != ("FLAC", "MP3")]


@pytest.mark.parametrize(("first", "second"), UNLIKE)
def test_a_recording_of_another_form_that_follows_is_read_or_refused(first, second):
    """As of ``cat a.wav b.mp3``; an MP3 in a FLAC alone cannot be seen."""
    try:
        assert len(decode(FORMS[first] + FORMS[second]).samples) == 48_000
    except AudioError as error:
        assert any(word in str(error) for word in ("followed", "other rates", "cut off", "damaged", "samples"))


def test_a_recording_that_memory_could_not_hold_is_refused(monkeypatch):
    """Hours of silence are a small FLAC."""
    monkeypatch.setattr(audio, "MOST", 23_999)
    assert "holds more than 23,999 samples; cut it into utterances" in refusal(FORMS["FLAC"])
    with open_audio(FORMS["FLAC"]) as stream:
        assert sum(map(len, stream.blocks())) == 24_000  # in a stream there is no limit


# ---- no length in the header -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("total, length", [(0x7FFFF024, 0x7FFFF000), (0x7FFFFF24, 0x7FFFFF00), (36, 0), (0, 0),
                                           (0xFFFFFFFF, 0xFFFFFFFF), (0x80000024, 0x80000000)])  # fmt: skip
def test_a_wav_from_a_pipe_or_a_crash_is_read_to_the_end_of_the_file(total, length):
    data = FORMS["WAV"]
    piped = data[:4] + struct.pack("<I", total) + data[8:40] + struct.pack("<I", length) + data[44:]
    found = decode(piped)
    assert np.array_equal(found.samples, decode(data).samples) and found.note == NO_LENGTH


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
@pytest.mark.parametrize("total, frames, length", [(0, 0, 0), (0x7F000000, 0x3F800000, 0x7F000000)])
def test_an_aiff_from_a_pipe_is_read_to_the_end_of_the_file(subtype, total, frames, length):
    data = encoded("AIFF", subtype)
    piped = bytearray(data)
    for place, value in ((4, total), (data.index(b"COMM") + 10, frames), (data.index(b"SSND") + 4, length)):
        piped[place : place + 4] = struct.pack(">I", value)
    found = decode(bytes(piped))
    assert np.array_equal(found.samples, decode(data).samples) and found.note == NO_LENGTH


def test_au_and_caf_may_leave_their_length_open_and_an_empty_wav_is_empty():
    au, caf = FORMS["AU"], FORMS["CAF"]
    place = caf.index(b"data") + 4
    for data in (au[:8] + b"\xff" * 4 + au[12:], caf[:place] + b"\xff" * 8 + caf[place + 8 :]):
        found = decode(data)
        assert len(found.samples) == 24_000 and found.note == NO_LENGTH
    empty = decode(encoded("WAV", samples=SAMPLES[:0]))
    assert len(empty.samples) == 0 and empty.note is None


# ---- blocks ----------------------------------------------------------------------------------------------------------


def test_blocks_of_a_file_are_its_samples_and_announce_their_number(tmp_path):
    for name in ("WAV", "FLAC", "MP3", "SPHERE"):
        (tmp_path / "a").write_bytes(FORMS[name])
        with open_audio(tmp_path / "a") as stream:
            assert np.array_equal(np.concatenate(list(stream.blocks())), decode(FORMS[name]).samples)
            assert stream.frames == (None if name == "MP3" else 24_000)


@pytest.mark.parametrize("own", [8000, 11_025, 44_100, 48_000])
def test_resampling_does_not_depend_on_how_blocks_are_cut(own):
    samples = np.rint(20_000 * SAMPLES).astype(np.int16)[:, None]
    whole = np.concatenate(list(resampled([samples], own, 16_000)))
    for size in (160, 999, 12_345):
        parts = [samples[i : i + size] for i in range(0, len(samples), size)]
        assert np.array_equal(np.concatenate(list(resampled(parts, own, 16_000))), whole)


@pytest.mark.parametrize("rate", [1, 3_111_040])
def test_a_rate_that_no_sound_has_is_refused(rate):
    with pytest.raises(AudioError, match=f"its header says {rate:,} Hz, where sound has 1,000 to 1,000,000"):
        resample(Recording(np.zeros((800, 1), np.int16), rate), 16_000)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_clips_too_short_for_the_resampler_keep_their_length(dtype):
    tone = np.full((66, 1), 1000, dtype) << (8 if dtype == np.int32 else 0)
    for count in (1, 2, 3, 20, 65, 66):
        found = resample(Recording(tone[:count], 48_000), 16_000)
        assert found.samples.shape == (-(-count // 3), 1) and found.samples.dtype == dtype and found.rate == 16_000
    middle = resample(Recording(tone, 48_000), 16_000).samples[8:14]
    assert np.abs(middle - tone[0, 0]).max() < abs(int(tone[0, 0])) / 10
