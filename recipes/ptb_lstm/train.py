"""Trains the LSTM language models of Zaremba et al. (2014), with or without symmetric weight noise.

    python data_prep/ptb.py --source PTB --out data/ptb
    python recipes/ptb_lstm/train.py --config recipes/ptb_lstm/small_cpu.yaml --data data/ptb --out runs/ptb
    seqssgd evaluate --run runs/ptb --data data/ptb --split test

Any prepared text will do (data_prep/text.py). The README beside this file has times, results and settings.
"""

import seqssgd.interrupts  # noqa: F401  # isort: skip  (before torch)
from pathlib import Path

from seqssgd import training
from seqssgd.data.text import load_text
from seqssgd.files import make_folder
from seqssgd.language.config import Config
from seqssgd.language.task import LanguageModelTask, build_model
from seqssgd.runs import layout


def main(argv: list[str] | None = None) -> int:
    """Trains as the command line says; returns the exit status."""
    command = training.parse_recipe(Config, argv, description=__doc__.splitlines()[0])
    config = command.config
    dataset = load_text(command.data)
    device = training.setup(config.training, config.seed)
    model = build_model(config.model, dataset.tokenizer.vocab_size).to(device)
    task = LanguageModelTask(model, dataset, config, device)
    data = {"name": dataset.info["name"], "fingerprint": dataset.info["fingerprint"]}
    about = {"recipe": "ptb_lstm", "data": data}

    def save_tokenizer(run: Path) -> None:
        make_folder(run / layout.TOKENIZER)  # so that the run can be used without the data
        dataset.tokenizer.save(run / layout.TOKENIZER)

    return training.train(command, task, about, save_tokenizer)


if __name__ == "__main__":
    training.run_program(main)
