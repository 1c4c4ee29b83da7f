"""The files of a report, and the tables within documents."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from ..files import atomic_path
from .comparison import Comparison
from .curvature import curvature_section
from .escape import bullets
from .page import Section, html_page, plain_page
from .plots import PICTURES, draw
from .tables import Table, notes, results_csv, results_table, runs_table, settings_table


def summary(comparison: Comparison) -> str:
    """The results in Markdown, with the notes that they need."""
    return "\n\n".join([results_table(comparison).markdown(), bullets(notes(comparison))])


def write_report(
    comparison: Comparison, folder: str | Path, page: bool = True, sections: Sequence[Section] = ()
) -> list[Path]:
    """Writes report.md, report.csv and pictures as PNG, for a ``page`` report.html and SVG too; returns their paths.

    Further ``sections`` go to the end of it, after one about curvature if runs logged that.

    Nothing is written before all is made, and each file is replaced as a whole.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = Path(folder)
    curvature = curvature_section(comparison)
    sections = [*([curvature] if curvature else []), *sections]
    runs = sum(len(row.group.runs) for row in comparison.rows)
    heading = f"Comparison of {_number(len(comparison.rows), 'method')}, {_number(runs, 'run')}"
    tables: dict[str, Table] = {"Results": results_table(comparison)}
    if len(comparison.rows) > 1:
        tables["Settings that differ"] = settings_table(comparison)
    tables["Runs"] = runs_table(comparison)
    pictures = draw(comparison)
    markdown = [f"# {heading}", summary(comparison)]
    for part, (caption, shown) in PICTURES.items():
        markdown += [f"## {part}", caption, *(f"![{shows}]({name}.png)" for name, shows in shown.items())]
    markdown += [f"## {name}\n\n{table.markdown()}" for name, table in list(tables.items())[1:]]
    markdown += [section.markdown() for section in sections]
    drawn = {name: files["svg"].decode() for name, files in pictures.items()}
    files = {"report.html": html_page(heading, tables, notes(comparison), drawn, sections).encode()} if page else {}
    for section in sections:
        pictures |= section.pictures
    files |= {"report.md": ("\n\n".join(markdown) + "\n").encode(), "report.csv": results_csv(comparison).encode()}
    kinds = ("png", "svg") if page else ("png",)
    files |= {f"{name}.{kind}": made[kind] for name, made in pictures.items() for kind in kinds}
    return _write(files, folder)


def write_section(section: Section, folder: str | Path, name: str) -> list[Path]:
    """Writes a section as a page of its own, NAME.html and NAME.md, with its pictures; returns their paths.

    Raises:
        UserError: the folder cannot be written to.
    """
    files = {f"{name}.html": plain_page(section.heading, [section.html()]).encode()}
    files |= {f"{name}.md": f"{section.markdown()}\n".encode()}
    files |= {f"{key}.{kind}": made[kind] for key, made in section.pictures.items() for kind in ("png", "svg")}
    return _write(files, Path(folder))


def _write(files: Mapping[str, bytes], folder: Path) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(data)
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error.strerror}); choose another folder") from None
    return [folder / name for name in files]


def write_between(path: Path, name: str, text: str) -> None:
    """Puts ``text`` between the lines ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->`` of a file.

    Raises:
        UserError: the file has no such lines.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    new, count = pattern.subn(lambda match: f"{match[1]}{text}\n{match[2]}", old)
    if count != 1:
        raise UserError(f"{path}: needs the lines {begin} and {end} once")
    if new != old:
        with atomic_path(path) as temporary:
            temporary.write_text(new, encoding="utf-8")


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
