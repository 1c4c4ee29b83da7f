"""Draws architecture.svg: python docs/architecture.py"""

from html import escape
from pathlib import Path

ROWS = [  # from those who call to those who are called: (name, what it is for)
    [("data_prep", "a corpus as its owner ships it in, prepared files out"), ("recipes", "train.py, YAML, studies")],
    [("speech", "task, decoding, WER"), ("language", "task, perplexity, text"), ("images", "task, accuracy")],
    [("models", "plain modules"), ("data", "files in, batches out"), ("training", "one loop for every task"),
     ("runs", "the run directory")],
    [("optim", "levels, passes, methods: needs torch alone")],
]  # fmt: skip
READERS = [("report", "tables, pictures"), ("landscape", "curvature, surfaces"), ("cli", "the command seqssgd")]
WIDTH, HEIGHT, GAP, SIDE = 900, 62, 34, 190
STYLE = "font-family='sans-serif' text-anchor='middle'"


def box(x: float, y: float, width: float, name: str, about: str, colour: str) -> str:
    middle = x + width / 2
    return (
        f"<rect x='{x:.0f}' y='{y:.0f}' width='{width:.0f}' height='{HEIGHT}' rx='6' fill='{colour}' stroke='#444'/>"
        f"<text x='{middle:.0f}' y='{y + 26:.0f}' {STYLE} font-size='16' font-weight='bold'>{escape(name)}</text>"
        f"<text x='{middle:.0f}' y='{y + 46:.0f}' {STYLE} font-size='11.5'>{escape(about)}</text>"
    )


def drawing() -> str:
    parts, main = [], WIDTH - SIDE - 40
    for number, row in enumerate(ROWS):
        y = 10 + number * (HEIGHT + GAP)
        width = (main - 12 * (len(row) - 1)) / len(row)
        colour = ("#f3f0e6", "#e6eef7", "#e8f3e6", "#f7e6e6")[number]
        parts += [box(10 + i * (width + 12), y, width, *each, colour) for i, each in enumerate(row)]
        if number:
            parts.append(f"<path d='M{10 + main / 2:.0f} {y - GAP + 4} v{GAP - 10}' stroke='#444' stroke-width='2' "
                         "marker-end='url(#head)'/>")  # fmt: skip
    for number, (name, about) in enumerate(READERS):
        parts.append(box(WIDTH - SIDE - 10, 10 + number * (HEIGHT + GAP), SIDE, name, about, "#f0f0f0"))
    height = 20 + len(ROWS) * (HEIGHT + GAP) - GAP
    y = 10 + 2.5 * HEIGHT + 2 * GAP
    parts.append(f"<path d='M{WIDTH - SIDE - 12} {y:.0f} h-15' stroke='#444' stroke-width='2' "
                 "marker-end='url(#head)'/>")  # fmt: skip
    for line, text in ((height - 40, "these read"), (height - 24, "finished runs")):
        parts.append(f"<text x='{WIDTH - SIDE / 2 - 10:.0f}' y='{line}' {STYLE} font-size='11.5'>{text}</text>")
    head = "<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
    head += "<path d='M0 0 L8 4 L0 8 z' fill='#444'/></marker></defs>"
    head += f"<rect width='{WIDTH}' height='{height}' fill='white'/>"
    body = "\n".join(parts)
    return f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}'>\n{head}\n{body}\n</svg>\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(drawing(), encoding="utf-8")
