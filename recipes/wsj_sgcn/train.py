"""Trains the Simple Gated ConvNet with CTC on prepared speech, with or without symmetric weight noise.

    python data_prep/an4.py --source AN4 --out data/an4
    python recipes/wsj_sgcn/train.py --config recipes/wsj_sgcn/an4_ssgd.yaml --data data/an4 --out runs/an4
    seqssgd evaluate --run runs/an4 --data data/an4 --split test

WSJ, LibriSpeech and any data set of the Hugging Face hub go the same way (data_prep/wsj.py, librispeech.py,
hub_asr.py). The README beside this file has times, results and settings.
"""

import seqssgd.interrupts  # noqa: F401  # isort: skip  (before torch)
from pathlib import Path

from seqssgd import training
from seqssgd.files import make_folder
from seqssgd.runs import layout
from seqssgd.speech.config import Config
from seqssgd.speech.recognizer import Recognizer
from seqssgd.speech.task import SpeechTask, build_tokenizer, load_sets


def main(argv: list[str] | None = None) -> int:
    """Trains as the command line says; returns the exit status."""
    command = training.parse_recipe(Config, argv, description=__doc__.splitlines()[0])
    config = command.config
    sets = load_sets(command.data, config)
    tokenizer = build_tokenizer(config.tokens, sets["train"].texts)
    device = training.setup(config.training, config.seed)
    model = Recognizer(config.model, tokenizer.vocab_size).to(device)
    task = SpeechTask(model, tokenizer, sets, config, device)
    data = {role: part.description() for role, part in sets.items()}
    about = {"recipe": "wsj_sgcn", "data": data, "tokenizer": tokenizer.fingerprint}

    def begin(run: Path) -> None:
        make_folder(run / layout.TOKENIZER)  # so that the run can be used without the data
        tokenizer.save(run / layout.TOKENIZER)
        parameters = sum(p.numel() for p in model.parameters())
        training.say(f"{sets['train']}; {task.selection}; {parameters:,} parameters")

    return training.train(command, task, about, begin)


if __name__ == "__main__":
    training.run_program(main)
