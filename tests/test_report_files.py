"""What the report writes: tables, CSV, curves, and a page that needs nothing but itself; tables in documents."""

import csv
import json
import re
from html.parser import HTMLParser

import pytest
from made_runs import make_run, seeds
from programs import ROOT, load

from seqssgd.cli import main
from seqssgd.errors import UserError
from seqssgd.report import compare, read_run, results_table, write_between, write_report
from seqssgd.report.curvature import curvature_section
from seqssgd.report.page import Section
from seqssgd.report.plots import COLOURS, GREY

SSGD = {"method": "ssgd", "noise": 0.2}
PICTURES = [f"{name}.{kind}" for name in ("methods", "curves_epoch", "curves_passes") for kind in ("png", "svg")]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = seeds(folder, "a", [20.3, 20.9, 19.6]) + seeds(folder, "b", [17.8, 18.1, 17.9], passes=40, **SSGD)
    runs += [make_run(folder / "long", [88.0, 25.0, 23.0, 22.0], test=20.0)]
    runs += seeds(folder, "c<b>", [25.0, 26.0], passes=40, method="sam", base="a&b|c")
    return compare([read_run(path) for path in runs])


@pytest.fixture(scope="module")
def report(comparison, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new/folder"
    assert {path.name for path in write_report(comparison, folder)} == {path.name for path in folder.iterdir()}
    return folder


class Page(HTMLParser):
    """The elements of a page and the cells of its tables; refuses unbalanced tags."""

    VOID = {"meta", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements, self.tables, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), [name for name, _ in self.open]))
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs)))
        if tag == "table":
            assert self.open[-2][1].get("class") == "scroll"  # a box of its own that scrolls
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        self.text += data


def markdown_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.split("\n\n")[1].splitlines() if not line.startswith("| ---")]
    return [[c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown_page_and_csv_hold_the_same_table(comparison, report):
    table = results_table(comparison)
    rows = [table.head, *table.rows]
    assert markdown_rows((report / "report.md").read_text()) == rows
    assert Page((report / "report.html").read_text()).tables[0] == rows
    records = list(csv.DictReader((report / "report.csv").read_text().splitlines()))
    assert len(records) == len(comparison.rows) == 4

    def figure(record, name):
        mean, sd = record[name], record[f"{name}_sd"]
        return f"{float(mean):.2f}" + (f" ± {float(sd):.2f}" if sd else "")

    def difference(record, name):
        baseline, delta, p = (record[f"{name}_{key}"] for key in ("baseline", "delta", "p"))
        if baseline == record["method"]:
            return "baseline"
        both = [float(record[f"{name}_{key}"]) for key in ("p", "holm")] if p else []
        tested = "; ".join("< 0.001" if value < 0.001 else f"{value:.3f}" for value in both) or "–"
        return f"{float(delta):+.2f} ({tested})".replace("-", "−") if delta else "–"

    for record, row in zip(records, table.rows, strict=True):
        assert row == [
            *(record["method"], record["n"], f"{float(record['c']):g}" if record["c"] else "–"),
            *(f"{float(record['epochs']):g}", f"{float(record['passes']):,.0f}"),
            *(figure(record, "valid_wer"), figure(record, "test_wer")),
            *(difference(record, "equal_epochs"), difference(record, "equal_passes")),
            f"{float(record['seconds']):.0f}",
        ]
    assert [record["method"] for record in records] == ["Adam", "Adam, 4 epochs", "S-Adam 0.2", "SAM"]
    p = [record["equal_epochs_p"] for record in records]
    assert float(p.pop(2)) < 0.05 and p == ["", "", ""]  # another base optimizer has no baseline here


def test_the_words_say_who_wins_and_against_whom(report):
    text = (report / "report.md").read_text()
    assert "Equal epochs: Adam is the baseline of S-Adam 0.2." in text
    assert "Equal epochs, p < 0.05 after Holm's correction: Better: S-Adam 0.2." in text
    assert "Equal passes: Adam, 4 epochs is the baseline of S-Adam 0.2." in text
    assert "Equal passes, p <" not in text  # a side with one seed


@pytest.mark.parametrize("worse, verdict", [([22.0, 22.1], "Worse"), ([20.5, 21.5], "No significant difference")])
def test_a_method_that_loses_is_called_worse(tmp_path, capsys, worse, verdict):
    runs = seeds(tmp_path, "a", [20.0, 20.1]) + seeds(tmp_path, "b", worse, **SSGD)
    assert main(["compare", *map(str, runs)]) == 0
    assert f"Equal epochs, p < 0.05 after Holm's correction: {verdict}: S-Adam 0.2." in capsys.readouterr().out


def test_a_higher_accuracy_is_called_better(tmp_path, capsys):
    runs = [
        make_run(tmp_path / f"{seed}{optim}", [{"valid_accuracy": value + seed}], settings={"seed": seed}, **optim)
        for optim, value in (({}, 80.0), (SSGD, 90.0))
        for seed in (0, 1)
    ]
    assert main(["compare", *map(str, runs)]) == 0
    out = capsys.readouterr().out
    assert "Higher is better." in out and "Equal epochs, p < 0.05 after Holm's correction: Better: S-Adam 0.2." in out


def test_runs_of_more_than_ten_minutes_are_timed_in_minutes(tmp_path):
    table = results_table(compare([read_run(make_run(tmp_path / "long", [30.0] * 11))]))
    assert (table.head[-1], table.rows[0][-1]) == ("minutes", "11.0")


def test_settings_that_differ_and_every_run_are_listed(comparison, report):
    _, settings, runs = Page((report / "report.html").read_text()).tables
    assert settings[0] == ["method", "optim.method", "optim.base", "optim.noise", "training.epochs"]
    assert ["Adam, 4 epochs", "none", "adam", "0", "4"] in settings
    assert "| SAM | sam | a&b\\|c | 0 | 2 |" in (report / "report.md").read_text()
    assert ["SAM", "c<b>1", "1", "0", "27.00", "26.00", "2"] in runs and len(runs) == 10


def test_the_page_asks_for_nothing_from_elsewhere(report):
    text = (report / "report.html").read_text()
    page = Page(text)
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 20
    for tag, attributes, _ in page.elements:
        assert tag not in ("script", "link", "img", "iframe", "object", "image", "base")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value[0] == "#" and value[1:] in ids
            if not name.startswith("xmlns"):
                assert "//" not in value
    assert {target for target in re.findall(r"url\(([^)]*)\)", text)} <= {f"#{name}" for name in ids}
    assert "@import" not in text and "c<b>" not in text
    policy = {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"}
    assert ("meta", policy, ["html", "head"]) in page.elements


def test_the_notes_of_a_section_are_text_in_markdown_too():
    assert "- a&lt;b>: [no link]\\(here)" in Section("Landscape", {}, ["a<b>: [no link](here)"], {}, {}).markdown()


def test_the_page_holds_the_pictures_in_the_colour_of_its_text(report):
    page = Page((report / "report.html").read_text())
    assert [tag for tag, _, _ in page.elements].count("svg") == 3
    assert "forward-backward passes" in page.text and "prefers-color-scheme: dark" in page.text
    for name in [name for name in PICTURES if name.endswith("svg")]:
        svg = (report / name).read_text()
        assert "currentColor" in svg and svg in (report / "report.html").read_text()
        dark = {c.lower() for c in re.findall(r"(?:fill|stroke): (#\w{6})", svg)} - {
            c.lower() for c in (*COLOURS, GREY)
        }
        assert dark <= {"#b0b0b0"}, dark  # that of the grid


def luminance(colour: str) -> float:
    """As in WCAG 2.2, of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True)) + 0.05


def test_colours_stand_out_on_light_and_on_dark(report):
    text = (report / "report.html").read_text()
    ink, pages = (re.findall(rf"--{name}: (#\w{{6}})", text) for name in ("text", "page"))
    assert len(ink) == len(pages) == 2

    def contrast(a, b):
        low, high = sorted((luminance(a), luminance(b)))
        return high / low

    assert all(contrast(a, b) >= 7 for a, b in zip(ink, pages, strict=True))
    assert all(contrast(colour, page) >= 3 for colour in (*COLOURS, GREY) for page in pages)


def test_every_method_has_a_panel_with_the_baselines_in_grey_and_bands_only_of_several_seeds(comparison):
    from seqssgd.report.plots import _curves

    panels = _curves(comparison, "passes").axes
    assert [axes.get_title(loc="left") for axes in panels] == ["S-Adam 0.2", "SAM"]
    for axes, (title, bands) in zip(panels, (("S-Adam 0.2", 2), ("SAM", 2)), strict=True):
        assert [line.get_label() for line in axes.lines] == ["Adam", "Adam, 4 epochs", title]
        assert [line.get_color() == GREY for line in axes.lines] == [True, True, False]
        assert [len(line.get_xdata()) for line in axes.lines] == [2, 4, 2]
        assert len(axes.collections) == bands  # "Adam, 4 epochs" has one seed
    assert list(panels[0].lines[2].get_xdata()) == [40, 80] and list(panels[0].lines[0].get_xdata()) == [20, 40]


def test_baselines_alone_have_a_panel_too(tmp_path):
    from seqssgd.report.plots import _curves

    (axes,) = _curves(compare([read_run(make_run(tmp_path / "run", [30.0, 20.0]))]), "epoch").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[30.0, 20.0]]


def test_every_run_is_a_dot_beside_the_name_of_its_method_and_baselines_have_a_line(comparison):
    from seqssgd.report.plots import _methods

    axes, epochs, passes = _methods(comparison).axes
    labels = [row.group.label for row in comparison.rows]
    assert [label.get_text() for label in axes.get_yticklabels()] == labels
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first is at the top
    drawn = {"o": {}, "|": {}, "None": []}
    for line in axes.lines:
        if line.get_marker() == "None":
            drawn["None"].append(line.get_xdata()[0])
        else:
            drawn[line.get_marker()][labels[int(line.get_ydata()[0])]] = list(line.get_xdata())
    for row in comparison.rows:
        values = row.values(comparison.decisive)
        assert drawn["o"][row.group.label] == values
        assert drawn["|"][row.group.label] == [pytest.approx(sum(values) / len(values))]
    baselines = [row for row in comparison.rows if row.group.label.startswith("Adam")]
    assert drawn["None"] == [row.figure(comparison.decisive).mean for row in baselines] and len(baselines) == 2
    for panel, criterion, dash in ((epochs, "equal epochs", "-"), (passes, "equal passes", "--")):
        found = comparison.rows[2].against[criterion]
        zero, interval, dot = panel.lines
        assert list(zero.get_xdata()) == [0, 0] and list(dot.get_xdata()) == [found.delta]
        assert list(interval.get_xdata()) == [found.low, found.high] and list(interval.get_ydata()) == [2, 2]
        assert interval.get_linestyle() == dash  # "Adam, 4 epochs" has one seed: the interval is the pooled one
        assert criterion in panel.get_xlabel() and "left is better" in panel.get_xlabel()


def test_the_first_evaluations_do_not_flatten_the_curves(tmp_path):
    from seqssgd.report.plots import _curves

    run = make_run(tmp_path / "run", [100.0, 30.0, 29.0, 28.0])
    (axes,) = _curves(compare([read_run(run)]), "epoch").axes
    assert 30 < axes.get_ylim()[1] < 31 and 27 < axes.get_ylim()[0] < 28


def test_a_report_is_the_same_every_time_and_replaces_the_last(comparison, report, tmp_path):
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "mine.txt").write_text("kept")
    write_report(comparison, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in report.iterdir()} | {"mine.txt"}
    for path in report.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_nothing_is_written_if_a_part_of_the_report_cannot_be_made(comparison, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr("seqssgd.report.writing.html_page", fail)
    with pytest.raises(RuntimeError):
        write_report(comparison, tmp_path / "report")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_table_and_writes_the_report(tmp_path, capsys):
    runs = seeds(tmp_path / "runs", "a", [20.0, 21.0])
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "report")]) == 0
    out = capsys.readouterr().out
    assert {"report.html", "report.md", "report.csv", *PICTURES} == {p.name for p in (tmp_path / "report").iterdir()}
    assert out.startswith("| method |") and out.split("\n\n- ")[0] in (tmp_path / "report/report.md").read_text()
    assert (tmp_path / "report/curves_epoch.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_page_there_are_the_same_tables_and_pictures_alone(comparison, report, tmp_path):
    written = write_report(comparison, tmp_path, page=False)
    assert {path.name for path in written} == {path.name for path in report.iterdir()} - {
        path.name for path in report.iterdir() if path.suffix in (".html", ".svg")
    }
    assert all(path.read_bytes() == (report / path.name).read_bytes() for path in written)


def test_runs_that_only_diverged_make_a_report_all_the_same(tmp_path):
    write_report(compare([read_run(make_run(tmp_path / "run", [None, None]))]), tmp_path / "report")
    assert "No best valid WER (not finite): run." in (tmp_path / "report/report.md").read_text()


# ---- tables in documents ---------------------------------------------------------------------------------------------


def test_text_is_replaced_between_its_marks_alone(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- t: begin -->\nold\n<!-- t: end -->\nb\n<!-- u: begin -->\nkept\n<!-- u: end -->\n")
    write_between(path, "t", "new \\1")
    text = "a\n<!-- t: begin -->\nnew \\1\n<!-- t: end -->\nb\n<!-- u: begin -->\nkept\n<!-- u: end -->\n"
    assert path.read_text() == text
    with pytest.raises(UserError, match="needs the lines"):
        write_between(path, "absent", "new")
    assert path.read_text() == text


@pytest.fixture(scope="module")
def results():
    return load("results/tables.py")


@pytest.fixture(scope="module")
def compared(results):
    return results.comparisons()


def test_every_table_in_the_readme_files_is_that_of_the_results(compared, results, tmp_path, monkeypatch):
    for name, (readme, text) in results.tables(compared).items():
        copy = tmp_path / "README.md"
        copy.write_text(readme.read_text())
        write_between(copy, f"results/{name}", text)
        assert copy.read_text() == readme.read_text(), f"{readme.name} is out of date for {name}: make tables"
    for name, comparison in compared.items():
        drawn = name == "ptb_small_cpu"  # pictures take most of the time, and no one looks at them here
        with monkeypatch.context() as patch:
            if not drawn:
                patch.setattr("seqssgd.report.writing.draw", lambda comparison: {})
            write_report(comparison, tmp_path / name, page=drawn)
        for file in ("report.md", "report.csv"):
            shown = ROOT / "results/reports" / name / file
            assert (tmp_path / name / file).read_text() == shown.read_text(), f"{shown} is out of date: make tables"


def test_runs_that_a_table_quotes_can_be_repeated(compared):
    """Each names the commit, unmodified, and the command that made it, and reached its end."""
    assert "ptb_small_cpu" in compared
    for comparison in compared.values():
        assert not comparison.left_out
        for run in [run for row in comparison.rows for run in row.group.runs]:
            environment = json.loads((run.path / "environment.json").read_text())
            assert environment["commit"] and not environment["modified"], run.path
            assert environment["command"][0].startswith("recipes/") and environment["cpu"], run.path


def test_curvature_that_was_logged_is_drawn_layer_by_layer(tmp_path):
    runs = [make_run(tmp_path / name, [20.0, 18.0], **settings) for name, settings in (("a", {}), ("b", SSGD))]
    assert curvature_section(compare(list(map(read_run, runs)))) is None
    lines = (runs[1] / "metrics.jsonl").read_text().splitlines()
    row = {"kind": "train", "step": 1, "epoch": 1, "passes": 2, "seconds": 1.0, "sharpness": 0.1, "relative_trace": 5.0}
    layers = {"trace/first": 3.0, "trace/<last>": None}  # a mean that was not finite
    text = "\n".join([json.dumps({**row, **layers}), *lines]) + "\n"
    (runs[1] / "metrics.jsonl").write_text(text)
    comparison = compare(list(map(read_run, runs)))
    paths = {path.name for path in write_report(comparison, tmp_path / "report")}
    assert {"curvature_whole.png", "curvature_layers.svg"} <= paths
    page = (tmp_path / "report/report.html").read_text()
    assert "Curvature during training" in page
    for shown in ("sharpness ½nᵀHn", "relative trace R", "tr H, first", "tr H, &lt;last&gt;"):
        assert shown in page
    section = curvature_section(comparison)
    assert section.markdown() in (tmp_path / "report/report.md").read_text()


def test_every_run_of_a_method_has_its_own_curve_of_curvature(tmp_path):
    runs = [make_run(tmp_path / str(seed), [20.0], **SSGD, noise_seed=seed) for seed in (0, 1)]
    for run in runs:
        row = {"kind": "train", "step": 1, "epoch": 1, "passes": 2, "seconds": 1.0}
        row |= {"sharpness": 1.0, "relative_trace": 5.0}
        file = run / "metrics.jsonl"
        file.write_text(json.dumps(row) + "\n" + file.read_text())
    picture = curvature_section(compare(list(map(read_run, runs)))).pictures["curvature_whole"]["svg"].decode()
    assert all(colour in picture for colour in COLOURS[:2]) and COLOURS[2] not in picture
