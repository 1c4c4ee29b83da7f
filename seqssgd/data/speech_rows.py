"""What the rows of prepared speech are, and how an utterance becomes one."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from seqssgd.data.contents import of_samples
from seqssgd.data.items import printable
from seqssgd.data.recording import AudioError, Recording, flac_of
from seqssgd.data.shards import Form
from seqssgd.data.transcripts import clean, no_text
from seqssgd.errors import UserError

_FEATURES = {name: {"dtype": kind, "_type": "Value"} for name, kind in
             {"id": "string", "text": "string", "speaker": "string", "duration": "float64"}.items()}  # fmt: skip
SCHEMA = pa.schema(
    {"id": pa.string(), "audio": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "text": pa.string(),
     "speaker": pa.string(), "duration": pa.float64()},
    # Hugging Face datasets takes the column for audio, and leaves the decoding to soundfile
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES | {
        "audio": {"decode": False, "_type": "Audio"}}}})},
)  # fmt: skip


@dataclass(frozen=True)
class Utterance:
    """One row to be: ``read`` gives the recording (or raises ``AudioError``) and goes to another process by pickle.

    ``path`` says where the audio is from, and with ``size`` (bytes) whether it is still the same one in a rerun.
    ``speaker`` is None where it is not known.
    """

    id: str
    text: str
    speaker: str | None
    path: str
    size: int
    read: Callable[[], Recording] = field(repr=False, compare=False)

    @property
    def identity(self) -> list:
        return [self.id, self.text, self.speaker, self.path, self.size]

    def row(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The row and its counts, or an ``AudioError`` with the reason to leave it out."""
        if not self.id.strip():
            raise AudioError("has no id")
        text = clean(self.text)
        if not text:
            raise AudioError("has an empty transcript")
        if wrong := no_text(text):
            raise AudioError(f"has characters in its transcript that are no text: {', '.join(map(ascii, wrong))}")
        recording, speaker = self.read(), self.speaker or None
        flac, duration = flac_of(recording)
        row = {"id": self.id, "audio": {"bytes": flac, "path": printable(self.path)}, "text": text, "speaker": speaker,
               "duration": duration}  # fmt: skip
        counts: dict[str, Any] = {"words": len(text.split()), "seconds": duration,
                                  "speakers": {speaker: 1} if speaker else {},
                                  "rates": {str(recording.rate): self.id},
                                  "notes": {recording.note: 1} if recording.note else {},
                                  "content": of_samples(self.id, recording.samples)}  # fmt: skip
        return row, counts


def _total(name: str, counts: dict[str, Any]) -> dict[str, Any]:
    rates = counts.get("rates", {})
    if len(rates) > 1:
        examples = ", ".join(f"{int(rate):,} Hz ({example})" for rate, example in rates.items())
        raise UserError(f"{name} mixes sample rates: {examples}; resample the recordings to one rate")
    return {
        "speakers": len(counts.get("speakers", {})),
        "words": counts.get("words", 0),
        "hours": counts.get("seconds", 0.0) / 3600,
        "sample_rate": next((int(rate) for rate in rates), None),
        **({"notes": counts["notes"]} if counts.get("notes") else {}),
    }


SPEECH = Form("speech corpus", "utterance", SCHEMA, AudioError, _total)
