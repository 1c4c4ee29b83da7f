"""Writes SPHERE files: headers, PCM, mu-law, and embedded shorten from a small encoder of the format's own rules."""

import io

import numpy as np
import soundfile

BLOCK = 256
DIFF, QUIT, BLOCKSIZE, ZERO = 0, 4, 5, 8  # commands of shorten; DIFF0 to DIFF3 are 0 to 3


class Bits:
    """A string of bits with the variable-length codes of shorten."""

    def __init__(self) -> None:
        self.bits: list[str] = []

    def unsigned(self, value: int, low: int) -> None:
        """Golomb-Rice: the upper part as that many zeros and a one, then ``low`` bits."""
        self.bits.append("0" * (value >> low) + "1" + (f"{value & ((1 << low) - 1):0{low}b}" if low else ""))

    def signed(self, value: int, low: int) -> None:
        self.unsigned(2 * value if value >= 0 else 2 * ~value + 1, low + 1)

    def number(self, value: int) -> None:
        """A number of any size, with the number of its low bits before it."""
        low = max(0, value.bit_length() - 1)
        self.unsigned(low, 2)
        self.unsigned(value, low)

    def pack(self) -> bytes:
        text = "".join(self.bits)
        text += "0" * (-len(text) % 32)
        return int(text, 2).to_bytes(len(text) // 8, "big")


def shorten(samples: np.ndarray, version: int = 2) -> bytes:
    """(N, channels) int16 samples as a shorten stream; every block takes the difference that makes it shortest."""
    count, channels = samples.shape
    out = Bits()
    for value in (5, channels, BLOCK, 0, 0, 0):  # little-endian 16 bits; no linear prediction, no running mean
        out.number(value)
    padded = np.concatenate([np.zeros((3, channels), np.int64), samples.astype(np.int64)])
    size = BLOCK
    for start in range(0, count, BLOCK):
        if count - start < size:
            size = count - start
            out.unsigned(BLOCKSIZE, 2)
            out.number(size)
        for channel in range(channels):
            block = padded[start : start + 3 + size, channel]
            if not block[3:].any():
                out.unsigned(ZERO, 2)
                continue
            residuals = [np.diff(block, order)[3 - order :] for order in range(4)]
            order = int(np.argmin([np.abs(residual).sum() for residual in residuals]))
            low = min(7, max(0, int(np.abs(residuals[order]).mean()).bit_length()))
            out.unsigned(DIFF + order, 2)
            out.unsigned(low, 3)
            for value in residuals[order].tolist():
                out.signed(value, low)
    out.unsigned(QUIT, 2)
    return b"ajkg" + bytes([version]) + out.pack()


def sphere(samples: np.ndarray, coding: str = "pcm", order: str = "01", rate: int = 16_000, **fields: object) -> bytes:
    """A SPHERE file; ``fields`` change the header (``None`` takes a field out)."""
    samples = samples[:, None] if samples.ndim == 1 else samples
    if coding == "pcm":
        body = samples.astype("<i2" if order == "01" else ">i2").tobytes()
    elif coding.startswith("pcm,"):
        body = shorten(samples, int(coding[-4]))
    else:
        body = law_codes(samples, {"ulaw": "ULAW", "alaw": "ALAW"}[coding])
    header = {
        "channel_count": samples.shape[1],
        "sample_count": len(samples),
        "sample_rate": rate,
        "sample_n_bytes": 2 if coding.startswith("pcm") else 1,
        "sample_byte_format": order if coding.startswith("pcm") else "1",
        "sample_coding": coding,
        "sample_checksum": int(samples.sum(dtype=np.int64)) % 65_536,
    } | fields
    lines = [f"{name} -i {value}" if isinstance(value, int) else f"{name} -s{len(value)} {value}"
             for name, value in header.items() if value is not None]  # fmt: skip
    text = "\n".join(["NIST_1A", "   1024", *lines, "end_head", ""])
    return text.encode().ljust(1024) + body


def law_codes(samples: np.ndarray, subtype: str) -> bytes:
    """mu-law or A-law codes by libsndfile."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 8000, format="RAW", subtype=subtype)
    return buffer.getvalue()


def speech_like(count: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """(N, channels) int16 samples that are as smooth as speech, with some silence."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(count + 32, channels))
    kernel = np.hanning(33)[:, None] / 6
    smooth = np.stack([np.convolve(noise[:, c], kernel[:, 0], "valid") for c in range(channels)], axis=1)
    samples = (smooth * 3000).astype(np.int16)
    samples[count // 3 : count // 2] = 0
    return samples
