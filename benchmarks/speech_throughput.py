"""Seconds of AN4 trained on per second by the speech recipe's loop, against SpeechBrain's over the same minibatches.

    pip install speechbrain
    python benchmarks/speech_throughput.py --data data/an4 [--models crdnn sgcn] [--rounds 3] [--threads 1]

``crdnn`` is SpeechBrain's own network, of the size that its CTC recipe for TIMIT gives it, and ``sgcn`` that of
``recipes/wsj_sgcn/an4.yaml``. SpeechBrain's loop is ``Brain.fit``, with its CTC loss, its clipping and its progress bar
off; the recipe's does the same work and also checks gradients, counts, logs and can resume. Both train the same network
with Adam on the same minibatches of features, which were made before from the recordings as ``an4.yaml`` says, in
turns, each in a process of its own. The first step is a warm-up.

A recipe keeps freed memory for the next step (``seqssgd/training/memory.py``); SpeechBrain's loop is also timed with
that. With one thread the time is the processor's, with more the clock's.

Time on one machine with 2 idle cores: about 10 minutes, most of them for ``crdnn``.
"""

import argparse
import contextlib
import io
import itertools
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from timing import Figures, apart, asked, benchmark, in_turns, ratio
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from seqssgd.speech.config import AugmentConfig, Config, CorpusConfig, FeatureConfig, RecognizerConfig
from seqssgd.speech.networks import NETWORKS
from seqssgd.speech.recognizer import Recognizer
from seqssgd.speech.task import SpeechTask, build_tokenizer, load_sets
from seqssgd.speech.torchaudio_import import import_torchaudio
from seqssgd.training import OptimConfig, RunDirectory, TrainingConfig, build_optimizer, fit, setup
from seqssgd.training.memory import keep_freed_memory

BINS = {"crdnn": 40, "sgcn": 80}  # mel filters
STEPS = {"crdnn": 2, "sgcn": 20}  # of about 10 and 0.2 seconds
OPTIM, CLIP = OptimConfig(base="adam", lr=1e-4), 5.0
Minibatch = tuple[Tensor, ...]


class CRDNN(nn.Module):
    """SpeechBrain's convolutional, recurrent and dense layers; its defaults are the sizes of its recipe for TIMIT."""

    subsampling = 2

    def __init__(self, input_size: int, output_size: int):
        super().__init__()
        import_torchaudio()  # which speechbrain imports, and cannot where its C++ extension does not load
        from speechbrain.lobes.models.CRDNN import CRDNN as Body

        self.body, self.output = Body(input_size=input_size, time_pooling=True), nn.Linear(512, output_size)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.output(self.body(features)), lengths // self.subsampling


class ReadyTask(SpeechTask):
    """The recipe's task on minibatches that are there, and how long they were trained on.

    Attributes:
        ready: the minibatches.
        times: when each was asked for, and the one after the last.
    """

    ready: list[Minibatch]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Minibatch]:
        self.times: list[float] = []
        return asked(self.ready, self.times)

    def evaluate(self) -> dict[str, float]:
        return {"valid_wer": 0.0}


def build_task(network: str, data: Path, steps: int) -> ReadyTask:
    """The recipe's task with a new model and ``steps`` minibatches."""
    settings = {"layers": 12, "width": 190, "kernel": 11, "front_end": "conv2d", "subsampling": 3}
    config = Config(
        corpus=CorpusConfig(batch_seconds=20.0, max_seconds=None, prefetch=0),
        model=RecognizerConfig(FeatureConfig(bins=BINS[network]), NETWORKS.settings("sgcn", **settings)),
        augment=AugmentConfig([0.9, 1.0, 1.1], time_masks=2, time_width=25, frequency_masks=2, frequency_width=15),
    )
    torch.manual_seed(0)
    sets = load_sets(data, config)
    tokenizer = build_tokenizer(config.tokens, sets["train"].texts)
    model = Recognizer(config.model, tokenizer.vocab_size)
    if network == "crdnn":
        model.network = CRDNN(BINS[network], tokenizer.vocab_size)
    task = ReadyTask(model, tokenizer, sets, config, torch.device("cpu"))
    task.ready = list(itertools.islice(SpeechTask.batches(task, 0), steps))
    return task


def recipe(task: ReadyTask) -> list[float]:
    """When the recipe's own loop asked for its minibatches."""
    training = TrainingConfig(clip=CLIP, threads=torch.get_num_threads(), device="cpu")
    setup(training, 0)
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        steps = len(task.ready)
        fit(task, build_optimizer(task.model, OPTIM), [], training, RunDirectory(out, {}), max_steps=steps)
    return task.times


class Minibatches(IterableDataset):
    """Minibatches for a loader that is to leave them as they are."""

    def __init__(self, ready: list[Minibatch]):
        self.ready, self.times = ready, []

    def __iter__(self) -> Iterator[Minibatch]:
        return asked(self.ready, self.times)


def speechbrain(task: ReadyTask) -> list[float]:
    """When SpeechBrain's loop asked for its minibatches."""
    import_torchaudio()
    import speechbrain as sb

    class Brain(sb.Brain):
        def compute_forward(self, batch: Minibatch, stage: sb.Stage) -> tuple[Tensor, Tensor]:
            features, frames, *_ = batch
            logits, lengths = self.modules.model(features, frames)
            return logits.log_softmax(-1), lengths / logits.shape[1]

        def compute_objectives(self, predictions: tuple[Tensor, Tensor], batch: Minibatch, stage: sb.Stage) -> Tensor:
            _, _, targets, target_lengths, _ = batch
            log_probabilities, lengths = predictions
            shares = target_lengths / targets.shape[1]
            return sb.nnet.losses.ctc_loss(log_probabilities, targets, lengths, shares, blank_index=0)

    minibatches = Minibatches(task.ready)
    run = {"device": "cpu", "max_grad_norm": CLIP}
    brain = Brain({"model": task.model}, lambda parameters: torch.optim.Adam(parameters, lr=OPTIM.lr), run_opts=run)
    brain.fit(range(1), DataLoader(minibatches, batch_size=None), progressbar=False)
    return minibatches.times


def kept(task: ReadyTask) -> list[float]:
    """The same, with freed memory kept as the recipe has it."""
    keep_freed_memory()
    return speechbrain(task)


LOOPS = {"speechbrain": speechbrain, "kept": kept, "recipe": recipe}


def one(loop: str, network: str, data: str, threads: str) -> None:
    """Prints the seconds of audio per second of a loop: the program of a process that has it alone."""
    torch.set_num_threads(int(threads))
    last = STEPS[network] + 1  # the first step is the warm-up, and the recipe asks for no minibatch after the last
    task = build_task(network, Path(data), last + 1)
    times = LOOPS[loop](task)
    print(sum(float(batch[4].sum()) for batch in task.ready[1:last]) / (times[last] - times[1]))


def measure(network: str, args: argparse.Namespace, folder: Path) -> Figures:
    words = (network, args.data, args.threads)
    rates = in_turns({loop: lambda loop=loop: apart(__file__, loop, *words) for loop in LOOPS}, args.rounds)
    return {
        "audio seconds per second, SpeechBrain": statistics.median(rates["speechbrain"]),
        "audio seconds per second, recipe": statistics.median(rates["recipe"]),
        "recipe / SpeechBrain": ratio(rates["recipe"], rates["speechbrain"]),
        "recipe / SpeechBrain that keeps freed memory": ratio(rates["recipe"], rates["kept"]),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:])
        sys.exit()
    about = {name: f"{STEPS[name]} steps on 20 s of AN4, {bins} mel filters" for name, bins in BINS.items()}
    benchmark(__doc__.splitlines()[0], about, measure, rounds=3, steps=None, threads=1, data="AN4, prepared")
