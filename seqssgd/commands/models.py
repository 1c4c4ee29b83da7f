"""Commands that use the model of a finished run: score and write text, write down speech."""

import argparse
import sys

from ..errors import UserError
from ..options import beam_arguments, check_beam_arguments, run_arguments


def perplexity_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``seqssgd perplexity`` takes."""
    run_arguments(parser, "a language model")
    parser.add_argument("files", nargs="+", metavar="FILE", help="UTF-8 text, one sentence per line")


def perplexity_command(args: argparse.Namespace) -> None:
    """``seqssgd perplexity``: scores each file, all of them read first."""
    from ..data.text import read_lines
    from ..devices import choose_device
    from ..language.finished import load_language_model
    from ..language.scoring import describe, perplexity

    device = choose_device(args.device)
    model, tokenizer = load_language_model(args.run, args.checkpoint)
    streams = {file: tokenizer.encode(read_lines(file), file) for file in args.files}  # all, before any is scored
    for file, stream in streams.items():
        score = perplexity(model, stream, device)
        print(f"{file}: {describe(score, stream, tokenizer)}", flush=True)


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``seqssgd generate`` takes."""
    run_arguments(parser, "a language model")
    parser.add_argument("--prompt", default="", help="how the text begins (default: nothing)")
    parser.add_argument("--length", type=int, default=100, help="tokens to add (default 100)")
    parser.add_argument("--temperature", type=float, default=1.0, help="below 1 is more careful, 0 takes the likeliest")
    parser.add_argument("--seed", type=int, default=0, help="of the first text; each further one takes the next")
    parser.add_argument("--count", type=int, default=1, help="number of texts (default 1)")


def generate_command(args: argparse.Namespace) -> None:
    """``seqssgd generate``: writes texts to standard output, one for each seed."""
    from ..devices import choose_device
    from ..language.finished import load_language_model
    from ..language.generation import generate
    from ..training.config import check_seed

    if args.count < 1:
        raise UserError(f"--count {args.count}: it must be at least 1")
    for seed in (args.seed, args.seed + args.count - 1):
        check_seed("--seed", seed)
    device = choose_device(args.device)
    model, tokenizer = load_language_model(args.run, args.checkpoint)
    model.to(device)
    for seed in range(args.seed, args.seed + args.count):
        if args.count > 1:
            print(f"--- seed {seed}")
        print(generate(model, tokenizer, args.prompt, args.length, args.temperature, seed), flush=True)


def transcribe_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``seqssgd transcribe`` takes."""
    run_arguments(parser, "a speech recogniser")
    parser.add_argument("--json", action="store_true", help="one JSON object per line: file, seconds, text")
    parser.add_argument("--mix", action="store_true", help="average the channels of recordings with several")
    parser.add_argument("--chunk-seconds", type=float, default=30.0, metavar="S",
                        help="audio recognised at a time; bounds the memory, not the result (default 30)")  # fmt: skip
    beam_arguments(parser)
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio: whatever soundfile reads, or NIST SPHERE")


def transcribe_command(args: argparse.Namespace) -> int:
    """``seqssgd transcribe``: writes what is said in each file to standard output; 2 if one of them failed."""
    import json

    from ..data.items import printable, reason_of
    from ..devices import choose_device
    from ..speech.decode import open_search
    from ..speech.finished import load_recognizer
    from ..speech.recordings import Wave, recognise

    check_beam_arguments(args)
    if not args.chunk_seconds >= 1:
        raise UserError(f"--chunk-seconds {args.chunk_seconds:g}: it must be at least 1")
    device = choose_device(args.device)
    model, tokenizer = load_recognizer(args.run, args.checkpoint)
    model.to(device)
    search = None
    if args.beam is not None:
        search = open_search(tokenizer, args.beam, args.lm, args.lexicon, args.alpha[0], args.beta[0])
        if search.coverage:
            print(f"note: {search.coverage}", file=sys.stderr)
    rate, failed = model.features.rate, False
    for file in args.files:
        name = printable(file)

        def notes(wave: Wave, name: str = name) -> None:
            if wave.note:
                print(f"note: the header of {name} {wave.note}", file=sys.stderr)
            if wave.own_rate < rate:
                print(f"note: {name} has {wave.own_rate:,} Hz, the model hears {rate:,} Hz; expect more errors",
                      file=sys.stderr)  # fmt: skip

        try:
            text, seconds = recognise(model, tokenizer, file, args.mix, args.chunk_seconds, search, notes)
        except Exception as error:
            reason = reason_of(error, name, UserError)
            text = reason if isinstance(error, UserError) else f"{name}: {reason}"
            print(f"error: {printable(text)}", file=sys.stderr, flush=True)
            failed = True
            continue
        if args.json:
            found = {"file": name, "seconds": round(seconds, 3), "text": text}
            print(json.dumps(found, ensure_ascii=False), flush=True)
        else:
            print(f"{name}: {text}" if len(args.files) > 1 else text, flush=True)
    return 2 if failed else 0
