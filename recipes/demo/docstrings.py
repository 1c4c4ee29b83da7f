"""A text that every machine with Python has: the docstrings of the standard library, one sentence per line.

python recipes/demo/docstrings.py --out demo/docstrings.txt
"""

import argparse
import ast
import inspect
import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from seqssgd.errors import UserError, run_cli
from seqssgd.files import atomic_path

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}
WORDS = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+|[^\w\s]")


def docstrings(folder: Path) -> Iterator[str]:
    """The docstrings of all modules, classes and functions below ``folder``, in the order of their paths."""
    for path in sorted(folder.rglob("*.py")):
        if LEFT_OUT.isdisjoint(path.relative_to(folder).parts):
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # files that are wrong on purpose
                continue
            for node in ast.walk(tree):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield inspect.cleandoc(ast.get_docstring(node) or "")


def sentences(docstring: str) -> Iterator[str]:
    """Its sentences, in lower case, with spaces between words and punctuation and every number written as N."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        if ">>>" in paragraph:  # an example, which is no language
            continue
        for sentence in re.split(r"(?<=[.!?:])\s+", " ".join(paragraph.split())):
            words = ["N" if word.isdigit() else word for word in WORDS.findall(sentence.lower())]
            if sum(word.isalpha() for word in words) >= 4:
                yield " ".join(words)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="text file to write")
    parser.add_argument("--sentences", type=int, metavar="N", help="write no more than the first N (default: all)")
    args = parser.parse_args(argv)
    out = args.out
    texts = list(docstrings(Path(sysconfig.get_path("stdlib"))))
    random.Random(0).shuffle(texts)  # so that validation text, cut from the end, is about the same modules
    lines = list(dict.fromkeys(sentence for text in texts for sentence in sentences(text)))
    lines = lines[: args.sentences]
    if not lines:
        raise UserError("this Python comes without the source of its standard library; use one that has it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    print(f"{out}: {len(lines):,} sentences, {sum(len(line.split()) for line in lines):,} words")


if __name__ == "__main__":
    sys.exit(run_cli(main))
