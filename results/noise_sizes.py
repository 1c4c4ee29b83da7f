"""How large the noise of runs is that did not log it: of methods whose size is absolute, at the weights of another run.

    python results/noise_sizes.py ptb_rivals --run runs/dropout_8 --of "SGD with dropout 0.2 after 8 epochs"

Writes NAME/noise_sizes.json, which ``make tables`` shows below the table of the comparison. It is an estimate: the
weights are those of a run of the same network, which needs its checkpoint, and not each method's own.
"""

import argparse
import json
import sys
from pathlib import Path

from seqssgd.errors import run_cli
from seqssgd.report import compare, read_run
from seqssgd.report.noise_size import logged_noise
from seqssgd.runs.recipes import read_recipe
from seqssgd.training import OptimConfig, build_optimizer
from seqssgd.training.noise_size import relative_noise

RESULTS = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a folder of runs in results/")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="with the checkpoint of the weights")
    parser.add_argument("--of", required=True, metavar="TEXT", help="what those weights are, in words")
    args = parser.parse_args(argv)
    model = read_recipe(args.run, settled=False)[0].module("finished").load_model(args.run, "best")
    comparison = compare([read_run(path.parent) for path in sorted((RESULTS / args.name).glob("*/config.yaml"))])
    sizes = {}
    for row in comparison.rows:
        if logged_noise(row.group) is None:
            own = {key.removeprefix("optim."): value for key, value in row.group.settings.items()}
            fields = {key: value for key, value in own.items() if key in OptimConfig.__dataclass_fields__}
            sizes[row.group.label] = relative_noise(build_optimizer(model, OptimConfig(**fields)))
    found = {"weights": args.of, "c": {name: size for name, size in sizes.items() if size is not None}}
    (RESULTS / args.name / "noise_sizes.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    sys.exit(run_cli(main))
