"""Reading SPHERE files: every coding, against the samples that were written and against other readers."""

import io

import numpy as np
import pytest
import soundfile
from sphere_files import speech_like, sphere

from seqssgd.data.sphere import AudioError, read_header, read_sphere

SHORTEN = "pcm,embedded-shorten-v2.00"


def refusal(data: bytes) -> str:
    with pytest.raises(AudioError) as error:
        read_sphere(data)
    return str(error.value)


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["pcm", "pcm,embedded-shorten-v1.09", SHORTEN])
@pytest.mark.parametrize("order", ["01", "10"])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_coding_of_16_bits_gives_the_samples_that_were_written(coding, order, channels):
    samples = speech_like(3000, channels=channels)
    samples[1000:1010] = [[-32_768], [32_767]] * 5
    decoded, rate = read_sphere(sphere(samples, coding, order))
    assert decoded.dtype == np.int16 and np.array_equal(decoded, samples) and rate == 16_000


@pytest.mark.parametrize("coding", ["ulaw", "alaw"])
def test_every_code_of_the_telephone_laws_is_decoded_as_libsndfile_does(coding):
    header = sphere(np.zeros(256, np.int16), coding)[:1024]
    codes = bytes(range(256))
    expected, _ = soundfile.read(
        io.BytesIO(codes), dtype="int16", format="RAW", subtype=coding.upper(), channels=1, samplerate=8000
    )
    assert np.array_equal(read_sphere(header + codes)[0][:, 0], expected)


def test_real_files_are_read_whole_and_add_up_to_their_checksums(real_data):
    mono, rate = read_sphere((real_data / "sphere" / "123_1pcle_shn.sph").read_bytes())
    stereo, _ = read_sphere((real_data / "sphere" / "123_2pcbe_shn.sph").read_bytes())
    assert mono.shape == (37_120, 1) and rate == 20_000 and stereo.shape == (37_120, 2)
    assert (mono.min(), mono.max(), mono.sum(dtype=np.int64) % 65_536) == (-2677, 2234, 55_857)
    assert np.array_equal(stereo[:, :1], mono) and np.array_equal(stereo[:, 1], -stereo[:, 0])


def test_padding_after_the_last_sample_is_no_sample():
    samples = speech_like(100)
    assert np.array_equal(read_sphere(sphere(samples) + bytes(823))[0], samples)


def test_header_fields_have_their_types_and_strings_their_length():
    data = sphere(speech_like(10), speaker_id="0ab", note="two words", sample_checksum=None)
    length, fields = read_header(data.replace(b"end_head", b"gain -r 1.50\nend_head"))
    assert length == 1024
    assert (fields["speaker_id"], fields["note"], fields["gain"]) == ("0ab", "two words", 1.5)
    assert "sample_checksum" not in fields and fields["sample_count"] == 10


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["pcm", "ulaw", SHORTEN])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 0.999])
def test_a_file_that_is_cut_off_anywhere_is_an_error(coding, part):
    data = sphere(speech_like(3000), coding)
    assert "3,000" in refusal(data[: 1024 + int(part * (len(data) - 1024))]) or coding == SHORTEN


def test_real_shorten_data_cut_off_anywhere_are_an_error(real_data):
    data = (real_data / "sphere" / "123_1pcle_shn.sph").read_bytes()
    reasons = [refusal(data[:length]) for length in range(1025, len(data) - 200, 1500)]
    assert reasons and all(reasons)


@pytest.mark.parametrize("coding", ["pcm", SHORTEN])
def test_one_changed_sample_is_noticed_by_the_checksum(coding):
    samples = speech_like(1000)
    checksum = int(samples.sum(dtype=np.int64)) % 65_536
    samples[500] += 1
    assert "checksum" in refusal(sphere(samples, coding, sample_checksum=checksum))
    read_sphere(sphere(samples, coding, sample_checksum=None))


def test_shorten_data_of_another_length_or_channel_count_than_the_header_says_are_an_error():
    samples = speech_like(1000)
    assert "1,000" in refusal(sphere(samples, SHORTEN, sample_count=900, sample_checksum=None))
    refusal(sphere(samples, SHORTEN, channel_count=2, sample_count=500, sample_checksum=None))


def test_damaged_headers_are_named():
    good = sphere(speech_like(20))
    assert "does not begin" in refusal(b"RIFF" + good[4:])
    assert "cut off" in refusal(good[:500])
    assert "end_head" in refusal(good.replace(b"end_head", b"        "))
    assert "sample_rate" in refusal(sphere(speech_like(20), rate=0))
    assert "sample_count None" in refusal(sphere(speech_like(20), sample_count=None))
    assert "'many'" in refusal(good.replace(b"sample_count -i 20", b"sample_count -i many"))
    assert "no field" in refusal(good.replace(b"sample_coding -s3 pcm", b"sample coding is pcm!"))
    assert "'wavpack'" in refusal(good.replace(b"-s3 pcm", b"-s7 wavpack"))
    assert "'11'" in refusal(good.replace(b"-s2 01", b"-s2 11"))
    assert "3 bytes" in refusal(sphere(speech_like(20), sample_n_bytes=3))
    assert "shorten" in refusal(good.replace(b"-s3 pcm", f"-s{len(SHORTEN)} {SHORTEN}".encode()))
