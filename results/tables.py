"""Writes every table and picture of results in the README files anew, from the runs in this folder.

    make tables

A sub-folder holds the run directories of one comparison, without their checkpoints; ``reports`` has the tables and
curves of each. ``benchmarks`` holds what the benchmarks wrote with ``--json``, ``noise_finder`` the curves that
``seqssgd noise-finder`` wrote for RECIPE/CONFIGURATION@STEPS of warm-up, ``escape`` what the study of escape wrote,
``diagonal.json`` what that of the Hessian's diagonal did, ``landscape`` what ``seqssgd landscape`` wrote about some
runs, without surfaces and page. The place of each table in a README file is marked by
``<!-- results/NAME: begin -->`` and ``<!-- results/NAME: end -->``.
"""

import csv
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrasts import CONTRASTS, contrasts, first_trials, kept, trials
from contrasts import table as contrast_table

from seqssgd.documents import read_yaml
from seqssgd.errors import UserError, run_cli
from seqssgd.landscape.section import section
from seqssgd.optim.finder import BEARABLE, NoiseCurve, Point
from seqssgd.report import Comparison, compare, read_run, summary, write_between, write_report
from seqssgd.report.baselines import EQUAL_PASSES
from seqssgd.report.comparison import Difference
from seqssgd.report.plots import COLOURS, forest, new_figure, picture_files
from seqssgd.runs import layout
from seqssgd.runs.reading import Run
from seqssgd.training.recipe import load_program

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parent
RUNS = {
    "an4": "recipes/wsj_sgcn/README.md",
    "an4_levels": "recipes/wsj_sgcn/README.md",
    "ptb_dropout": "recipes/ptb_lstm/README.md",
    "ptb_regularised": "recipes/ptb_lstm/README.md",
    "rnn300_baseline": "recipes/ptb_lstm/README.md",
    "rnn300": "recipes/ptb_lstm/README.md",
    "ptb_rivals": "recipes/ptb_lstm/README.md",
    "ptb_small_cpu": "recipes/ptb_lstm/README.md",
    "demo_dropout": "docs/should_i.md",
    "demo_regularised": "docs/should_i.md",
    "demo_pair": "docs/family.md",
    "demo_newton": "docs/family.md",
    "demo_memory": "docs/family.md",
    "demo_transformer": "docs/should_i.md",
    "demo_large": "docs/should_i.md",
    "demo_large_rate": "docs/should_i.md",
    "transformer_small": "docs/should_i.md",
    "transformer_baseline": "recipes/ptb_lstm/README.md",
    "conformer_baseline": "recipes/wsj_sgcn/README.md",
    "ocean_baseline": "recipes/wsj_sgcn/README.md",
    "ocean": "recipes/wsj_sgcn/README.md",
    "cifar10_cpu": "recipes/cifar_cnn/README.md",
}
# What the overview shows of them, and the methods in it, each a row: (optim.method, its form) -> name.
OVERVIEW = {
    "demo_regularised": ("docstrings, LSTM with dropout", "perplexity"),
    "ptb_regularised": ("Penn Treebank, LSTM with dropout", "perplexity"),
    "ocean": ("speechocean762, gated ConvNet with dropout", "WER in %"),
    "ptb_rivals": ("Penn Treebank, LSTM without dropout", "perplexity"),
    "an4": ("AN4, gated ConvNet", "WER in %"),
    "cifar10_cpu": ("CIFAR-10, ResNet-20", "accuracy in %"),
}
FORMS = {
    ("weight_noise", "batch"): "one-sided noise",
    ("weight_noise", "late"): "one-sided noise, late in training",
    ("ssgd", "halves"): "S-SGD by halves",
    ("ssgd", "steps"): "S-SGD by steps",
    ("ssgd", "late"): "S-SGD, late in training",
    ("ssgd", "batch"): "S-SGD, the paper's form (half the epochs)",
}
BENCHMARKS = {
    "benchmarks/optimizer_overhead": "benchmarks/README.md",
    "benchmarks/curvature_overhead": "benchmarks/README.md",
    "benchmarks/lm_throughput": "benchmarks/README.md",
    "benchmarks/speech": "benchmarks/README.md",
    "benchmarks/speech_throughput": "benchmarks/README.md",
    "benchmarks/images": "benchmarks/README.md",
    "benchmarks/landscape": "benchmarks/README.md",
    "benchmarks/sign_parallel": "benchmarks/README.md",
    "benchmarks/exactness": "docs/in_your_trainer.md",
}


def comparisons() -> dict[str, Comparison]:
    """The comparisons of which there are runs here, by name; the runs in the order of their names.

    Of one with several trials of an arm there are two: of what was chosen, and of what it was chosen from.
    """
    runs = {name: kept(RESULTS / name) if name in CONTRASTS else all_runs(RESULTS / name) for name in RUNS}
    for name in CONTRASTS:
        arms = [alternative.partition("-")[0] for alternative in trials(RESULTS / name)]
        if len(set(arms)) < len(arms):
            runs[f"{name}_trials"] = first_trials(RESULTS / name)
    return {name: compare(found) for name, found in runs.items() if found}


def all_runs(folder: Path) -> list[Run]:
    return [read_run(path.parent) for path in sorted(folder.glob(f"*/{layout.CONFIG}"))]


def benchmark_table(name: str) -> str:
    """A column for each model, a row for each figure: median (smallest to largest) of the rounds, or one number."""
    figures = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    models = {key: dict(value) for key, value in figures.items() if isinstance(value, dict)}
    for values in models.values():
        for label, copies in values.pop("memory", {}).items():
            values[f"memory of {label} beyond a plain step, in copies of the weights"] = copies
    labels = list(dict.fromkeys(label for values in models.values() for label in values))
    rows = [["", *models], ["---", *["---:"] * len(models)]]
    rows += [[label, *(_cell(values.get(label)) for values in models.values())] for label in labels]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", f"{figures['machine']}; {figures['rounds']} rounds."])


def _cell(value: float | list[float] | None) -> str:
    if isinstance(value, list):
        return "{:.2f} ({:.2f} to {:.2f})".format(*value)
    if value is None:
        return ""
    return f"{value:,.0f}" if value > 100 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def coverage_table() -> str:
    """A row for each model of other libraries: how much of its weights noise reaches, and what becomes of the rest."""
    found = json.loads((RESULTS / "benchmarks/coverage.json").read_text(encoding="utf-8"))
    rows = [
        ["model", "from", "trained parameters", "weights perturbed", "left alone"],
        ["---", "---", *["---:"] * 2, "---"],
    ]
    for name, figures in found["models"].items():
        package = figures["package"]
        if "missing" in figures:
            rows.append([name, package, "", "", f"not built here: {figures['missing']}"])
        elif "refused" in figures:
            rows.append([name, package, "", "none", f"an error: {_code_names(figures['refused'])}"])
        else:
            left = [f"{kind} ({size:,}): {', '.join(map('`{}`'.format, names[:3]))}{', …' if len(names) > 3 else ''}"
                    for kind, (size, names) in figures["left"].items()]  # fmt: skip
            warned = ["with a warning"] if figures["warned"] else []
            share = 100 * figures["perturbed"] / figures["weights"]
            shown = "100 %" if share == 100 else f"{share:.2f} %" if share < 99.99 else "> 99.99 %"
            rows.append([name, package, f"{figures['trained']:,}", shown, "; ".join([*warned, *left])])
    versions = ", ".join(f"{package} {version}" for package, version in found["packages"].items() if version)
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + ["", f"{versions}."])


def _code_names(message: str) -> str:
    return re.sub(r"'([^']*)'", r"`\1`", message)


def noise_table() -> str:
    """From what level on noise costs too much of the loss of each recipe, beside the level in its configuration."""
    rows = [["configuration", "steps before", f"costs {BEARABLE:.0%} from", "in use"], ["---", "---:", "---:", "---:"]]
    for path in sorted((RESULTS / "noise_finder").glob("*/*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            points = [Point(*(float(row[name]) for name in Point._fields)) for row in csv.DictReader(file)]
        name, _, warmup = path.stem.partition("@")
        config = RESULTS.parent / "recipes" / path.parent.name / f"{name}.yaml"
        used = read_yaml(config, "put the file of the repository back")["optim"]["noise"]
        level = NoiseCurve(points).level
        shown = f"{level:.2g}" if level is not None else f"above {points[-1].level:.2g}"
        rows.append([f"`{path.parent.name}/{name}.yaml`", f"{int(warmup):,}", shown, f"{used:g}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def overview(compared: dict[str, Comparison]) -> "Figure":
    """A forest plot for each recipe: what noise changes on the test set at equal passes, with its interval."""
    shown = {name: title for name, title in OVERVIEW.items() if name in compared}
    figure = new_figure(3.0 + 2.0 * len(shown), 1.1 + 0.32 * len(FORMS))
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (name, (title, unit)) in zip(panels, shown.items(), strict=True):
        comparison = compared[name]
        found = effects(comparison)
        forest(axes, [found.get(form) for form in FORMS], COLOURS[: len(FORMS)])
        axes.set_title(title.replace(", ", ",\n"), fontsize=10)
        axes.set_xlabel(f"Δ {unit} ({'left' if comparison.lower_is_better else 'right'} is better)", fontsize=9)
        axes.grid(alpha=0.3, axis="x")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(FORMS)), list(FORMS.values()), fontsize=9)
    panels[0].set_ylim(len(FORMS) - 0.5, -0.5)
    return figure


def effects_table(compared: dict[str, Comparison]) -> str:
    """The overview in figures: a row for each form, a column for each recipe."""
    shown = {name: title for name, title in OVERVIEW.items() if name in compared}
    rows = [["", *(f"{title}, Δ {unit}" for title, unit in shown.values())], ["---", *["---:"] * len(shown)]]
    columns = [effects(compared[name]) for name in shown]
    rows += [[name, *(_effect(found.get(form)) for found in columns)] for form, name in FORMS.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def effects(comparison: Comparison) -> dict[tuple[str, str], Difference]:
    """The difference of each form from the base optimizer at equal passes.

    Raises:
        UserError: there are two of one form, such as two levels, and nothing says which of them is meant.
    """
    found: dict[tuple[str, str], tuple[str, Difference]] = {}
    for row in comparison.rows:
        effect, form = row.against[EQUAL_PASSES], _form(row.group.settings)
        if form not in FORMS or effect is None or effect.delta is None:
            continue
        if form in found:
            raise UserError(
                f"{found[form][0]} and {row.group.label} are both {FORMS[form]}; the overview shows one of each form: "
                "keep the runs of one of them in a comparison of its own"
            )
        found[form] = row.group.label, effect
    return {form: effect for form, (_, effect) in found.items()}


def _effect(found: Difference | None) -> str:
    if found is None or found.delta is None:
        return "not run"
    if found.low is None or found.high is None:
        return f"{found.delta:+.2f}".replace("-", "−")
    seeds = "" if found.p is not None else "one seed: "
    return f"{seeds}{found.delta:+.2f} ({found.low:+.2f} to {found.high:+.2f})".replace("-", "−")


def _form(settings: dict[str, Any]) -> tuple[str, str]:
    signs = settings["optim.signs"] or "batch"
    return settings["optim.method"], "late" if signs == "batch" and settings["optim.noise_schedule"] else signs


def estimates(name: str) -> str:
    """What noise_sizes.py wrote for a comparison, as one more note."""
    file = RESULTS / name / "noise_sizes.json"
    if not file.is_file():
        return ""
    found = json.loads(file.read_text(encoding="utf-8"))
    sizes = "; ".join(f"{label}: {c:.2g}" for label, c in found["c"].items())
    return f"\n- c of these, estimated at the weights of {found['weights']}: {sizes}."


def escape_tables() -> str:
    """The tables of the study of escape, as the study itself writes them."""
    program = load_program(RESULTS.parent / "recipes/studies/escape_tables.py")
    return program.markdown(json.loads((RESULTS / "escape/escape.json").read_text()))


def landscape_tables(folder: Path) -> str:
    """What ``seqssgd landscape`` has measured of some runs, in tables: as the page that it writes."""
    found = section(folder, pictures=False)
    tables = [f"{heading}:\n\n{table.markdown()}" for heading, table in found.tables.items()]
    return "\n\n".join([*tables, "\n".join(f"- {note}" for note in found.notes)])


def diagonal_tables() -> str:
    """The tables of the study of the Hessian's diagonal, as the study itself writes them."""
    program = load_program(RESULTS.parent / "recipes/studies/diagonal.py")
    return program.markdown(json.loads((RESULTS / "diagonal.json").read_text(encoding="utf-8")))


def diagonal_picture() -> "Figure":
    """The error of a single estimate of the diagonal over the level, by weight: a panel for each network."""
    found = json.loads((RESULTS / "diagonal.json").read_text(encoding="utf-8"))
    figure = new_figure(9.0, 3.2)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (network, kinds) in zip(panels, found.items(), strict=True):
        methods = dict.fromkeys(row.split()[1] for row in kinds["weight"])
        for method, colour in zip(methods, COLOURS, strict=False):
            rows = {row.split()[0]: values for row, values in kinds["weight"].items() if row.split()[1] == method}
            errors = [values["one estimate"] for values in rows.values()]
            axes.loglog([float(level) for level in rows], errors, "o-", color=colour, label=method, markersize=4)
        levels = list(dict.fromkeys(row.split()[0] for row in kinds["weight"]))
        axes.set_xticks([float(level) for level in levels], levels, fontsize=9)
        heights = [y for y in (1, 2, 3, 5, 10, 20, 50, 100, 200) if axes.get_ylim()[0] <= y <= axes.get_ylim()[1]]
        axes.set_yticks(heights, [str(y) for y in heights], fontsize=9)
        axes.minorticks_off()
        axes.set_title(network, fontsize=10)
        axes.set_xlabel("level c", fontsize=9)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("error of one estimate / diagonal", fontsize=9)
    panels[0].legend(fontsize=8)
    return figure


def tables(compared: dict[str, Comparison]) -> dict[str, tuple[Path, str]]:
    """Every table of which there are figures here, by name: the file that shows it, and its text."""
    root = RESULTS.parent
    shown = {name: (root / RUNS[name], summary(compared[name]) + estimates(name)) for name in RUNS if name in compared}
    if (RESULTS / "benchmarks/coverage.json").is_file():
        shown["benchmarks/coverage"] = (root / "benchmarks/README.md", coverage_table())
    for name, asked in CONTRASTS.items():
        if found := contrasts(RESULTS / name, asked):
            shown[f"{name}_contrasts"] = (root / RUNS[name], contrast_table(found))
    shown["effects"] = (root / "docs/should_i.md", effects_table(compared))
    shown["noise_finder"] = (root / "recipes/studies/README.md", noise_table())
    shown["escape"] = (root / "recipes/studies/README.md", escape_tables())
    shown["diagonal"] = (root / "recipes/studies/README.md", diagonal_tables())
    for folder in sorted(path.parent for path in (RESULTS / "landscape").glob("*/landscape.json")):
        shown[f"landscape/{folder.name}"] = (root / "docs/flatness.md", landscape_tables(folder))
    measured = {name: readme for name, readme in BENCHMARKS.items() if (RESULTS / f"{name}.json").is_file()}
    return shown | {name: (root / readme, benchmark_table(name)) for name, readme in measured.items()}


def main() -> None:
    compared = comparisons()
    for name, (readme, text) in tables(compared).items():
        write_between(readme, f"results/{name}", text)
        print(f"{readme.relative_to(RESULTS.parent)}: results/{name}")
    for name, comparison in compared.items():
        write_report(comparison, RESULTS / "reports" / name, page=False)  # seqssgd compare writes the page
    (RESULTS / "diagonal.png").write_bytes(picture_files(diagonal_picture, "diagonal")["png"])
    (RESULTS / "reports/overview.png").write_bytes(picture_files(lambda: overview(compared), "overview")["png"])


if __name__ == "__main__":
    sys.exit(run_cli(main))
