"""Checks the distributions that ``make wheel`` has built, as their users meet them: in an environment with torch alone.

``python tests/wheel_check.py dist [--python python3.13] [--constraint FILE]`` makes a fresh environment, installs the
wheel, trains with it and calls every command. Needs nothing installed itself.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
SOURCES = {"seqssgd", "recipes", "data_prep", "benchmarks", "examples", "docs", "tests"}  # the folders of the sdist
TEXT = {".svg", ".py", ".md", ".yaml", ".toml", ".txt", ".cff", ".rst", ".typed", ".sh", ""}
COMMANDS = {
    "perplexity": ["--run", "run", "text.txt"],
    "generate": ["--run", "run"],
    "transcribe": ["--run", "run", "wave.wav"],
    "compare": ["run"],
    "noise-finder": ["--config", "x.yaml", "--data", "data", "--out", "out"],
}
TRAINING = """
import sys
import torch
from seqssgd.models.lstm import LSTMLanguageModel
from seqssgd.optim import SymmetricNoise, noise_groups

torch.manual_seed(0)
model = LSTMLanguageModel(vocab_size=11, hidden_size=16, num_layers=1)
tokens = (torch.arange(9)[:, None] + torch.arange(4)) % 11  # counting, which is soon learnt
optimizer = SymmetricNoise(torch.optim.Adam(noise_groups(model, noise=0.2), lr=0.02), signs="halves")
losses = []
for _ in range(60):
    for part in optimizer.passes():
        inputs, targets = part.take(tokens[:-1], tokens[1:], dim=1)
        loss = torch.nn.functional.cross_entropy(model(inputs)[0].flatten(0, 1), targets.flatten())
        loss.backward()
    losses.append(loss.item())
    optimizer.step()
    optimizer.zero_grad()
assert losses[-1] < 0.2 * losses[0], losses
assert "numpy" not in sys.modules
python = sys.version.split()[0]
print(f"Python {python}, torch {torch.__version__}: the loss fell from {losses[0]:.3f} to {losses[-1]:.3f}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path, help="the folder with one wheel and one sdist")
    parser.add_argument("--python", default=sys.executable, help="interpreter to install for (default: this one)")
    parser.add_argument("--constraint", type=Path, metavar="FILE", help="versions, as pip takes them")
    args = parser.parse_args()
    (wheel,), (sdist,) = args.dist.glob("*.whl"), args.dist.glob("*.tar.gz")
    version = re.search(r'__version__ = "(.+)"', (ROOT / "seqssgd/__init__.py").read_text()).group(1)
    check_wheel(wheel, version)
    check_sdist(sdist)
    with tempfile.TemporaryDirectory() as folder:
        check_installed(args, wheel, version, Path(folder))
    print("the wheel and the sdist are as they should be")


def check_wheel(wheel: Path, version: str) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    about = f"seqssgd-{version}.dist-info"
    assert {PurePosixPath(name).parts[0] for name in names} == {"seqssgd", about}, names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "seqssgd").rglob("*.py")}
    assert modules | {"seqssgd/py.typed", f"{about}/licenses/LICENSE"} <= names, modules - names


def check_sdist(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        files = [PurePosixPath(member.name) for member in archive if member.isfile()]
    inside = [file.relative_to(file.parts[0]) for file in files]
    folders = {file.parts[0] for file in inside if len(file.parts) > 1}
    assert folders <= SOURCES, f"folders that are no sources: {folders - SOURCES}"
    assert {*map(str, inside)} >= {"README.md", "LICENSE", "pyproject.toml", "seqssgd/py.typed"}
    others = [str(file) for file in inside if file.suffix not in TEXT and not file.name.startswith("Makefile")]
    assert not others, f"files that are no sources: {others}"
    assert sdist.stat().st_size < 2_000_000, f"{sdist} is larger than sources are"


def check_installed(args: argparse.Namespace, wheel: Path, version: str, folder: Path) -> None:
    subprocess.run([args.python, "-m", "venv", folder / "venv"], check=True)
    programs = folder / "venv/bin"
    pip = [programs / "python", "-m", "pip", "--disable-pip-version-check"]
    constraint = [] if args.constraint is None else ["--constraint", args.constraint]
    subprocess.run([*pip, "install", "--quiet", *constraint, wheel.resolve()], check=True)
    installed = subprocess.run([*pip, "list", "--format=freeze"], capture_output=True, text=True, check=True).stdout
    assert "torch==" in installed and "numpy==" not in installed, installed  # torch and what it needs

    def run(*command: object) -> subprocess.CompletedProcess:
        return subprocess.run([programs / command[0], *command[1:]], cwd=folder, capture_output=True, text=True)

    trained = run("python", "-c", TRAINING)
    assert trained.returncode == 0, trained.stderr
    print(trained.stdout, end="")
    help_text, described = run("seqssgd", "--help"), run("python", "-m", "seqssgd")
    assert help_text.returncode == described.returncode == 0 and help_text.stdout == described.stdout
    assert run("seqssgd", "--version").stdout == f"seqssgd {version}\n"
    for name, options in COMMANDS.items():
        assert name in help_text.stdout
        done = run("seqssgd", name, *options)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert re.fullmatch(r"error: the package \w+ is not installed: pip install 'seqssgd\[recipes\]'", last), last
    print(f"seqssgd {', '.join(COMMANDS)}: {last}")


if __name__ == "__main__":
    main()
