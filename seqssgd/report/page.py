"""A comparison as one HTML page that needs nothing but itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from .escape import bullets
from .plots import PICTURES
from .tables import Table

# The policy makes the browser refuse whatever the page might ask for from elsewhere.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1c1e21; --page: #ffffff; --line: #d5d8dc; --head: #f1f3f5; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e4e6e8; --page: #16181b; --line: #3b4046; --head: #22262a; }}
}}
body {{ margin: 0 auto; padding: 1rem; max-width: 75rem; color: var(--text); background: var(--page);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; }}
h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
.scroll {{ overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; }}
table {{ border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.4rem 0.7rem; text-align: right; overflow-wrap: normal; border-top: 1px solid var(--line); }}
th {{ vertical-align: bottom; }}
td {{ white-space: nowrap; background: var(--page); }}
thead, thead th {{ border: 0; background: var(--head); }}
th:first-child, td:first-child {{ position: sticky; left: 0; }}
.text {{ text-align: left; }}
.plots {{ display: grid; gap: 1.5rem; }}
figure {{ margin: 0; overflow-x: auto; }}
svg {{ display: block; width: 100%; height: auto; min-width: 32rem; max-width: 56rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


@dataclass
class Section:
    """A part of a page with tables, notes and pictures of its own.

    Attributes:
        heading: of the section.
        tables: by heading.
        notes: one paragraph each.
        parts: as :data:`seqssgd.report.plots.PICTURES`.
        pictures: those named there, each as ``"png"`` and ``"svg"``.
    """

    heading: str
    tables: dict[str, Table]
    notes: list[str]
    parts: dict[str, tuple[str, dict[str, str]]]
    pictures: dict[str, dict[str, bytes]]

    def html(self) -> str:
        """The section as a part of a page."""
        body = [f"<h2>{escape(self.heading)}</h2>", _list(self.notes)]
        body += [f"<h3>{escape(heading)}</h3>\n{_table(heading, table)}" for heading, table in self.tables.items()]
        drawn = {name: files["svg"].decode() for name, files in self.pictures.items()}
        return "\n".join(body + _pictures(self.parts, drawn, "h3"))

    def markdown(self) -> str:
        """The same in Markdown, with the pictures as PNG files beside it."""
        body = [f"## {self.heading}", bullets(self.notes)]
        body += [f"### {heading}\n\n{table.markdown()}" for heading, table in self.tables.items()]
        for heading, (caption, shown) in self.parts.items():
            body += [f"### {heading}", caption, *(f"![{shows}]({name}.png)" for name, shows in shown.items())]
        return "\n\n".join(body)


def html_page(
    title: str,
    tables: Mapping[str, Table],
    notes: list[str],
    pictures: Mapping[str, str],
    sections: Sequence[Section] = (),
) -> str:
    """The page: the first table, the notes, the pictures, the other tables, further sections.

    Args:
        title: of the page.
        tables: by heading.
        notes: one paragraph each.
        pictures: SVG elements, by their names in :data:`seqssgd.report.plots.PICTURES`.
    """
    first, *others = [f"<h2>{escape(heading)}</h2>\n{_table(heading, table)}" for heading, table in tables.items()]
    body = [first, _list(notes), *_pictures(PICTURES, pictures, "h2"), *others]
    return plain_page(title, [*body, *(section.html() for section in sections)])


def plain_page(title: str, body: Sequence[str]) -> str:
    """A page of parts that are HTML already."""
    return _PAGE.format(title=escape(title), body="\n".join(body))


def _list(notes: Sequence[str]) -> str:
    return "\n".join(["<ul>", *(f"<li>{escape(note)}</li>" for note in notes), "</ul>"])


def _pictures(parts: Mapping[str, tuple[str, Mapping[str, str]]], pictures: Mapping[str, str], level: str) -> list[str]:
    body = []
    for heading, (caption, shown) in parts.items():
        body += [f"<{level}>{heading}</{level}>", f"<p>{caption}</p>", '<div class="plots">']
        body += [
            f'<figure role="img" aria-label="{escape(shows)}">\n{pictures[name]}</figure>'
            for name, shows in shown.items()
        ]
        body += ["</div>"]
    return body


def _table(heading: str, table: Table) -> str:
    """In a box of its own, which scrolls where the page is too narrow (by keyboard too)."""

    def row(cells: list[str], tag: str) -> str:
        kinds = [' class="text"'] * table.texts + [""] * (len(cells) - table.texts)
        shown = [f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)]
        return f"<tr>{''.join(shown)}</tr>"

    lines = ["<table>", "<thead>", row(table.head, "th"), "</thead>", "<tbody>"]
    lines += [*(row(cells, "td") for cells in table.rows), "</tbody>", "</table>"]
    return "\n".join(
        [f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(heading)}">', *lines, "</div>"]
    )
