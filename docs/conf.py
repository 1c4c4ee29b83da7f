"""How Sphinx builds the documentation: ``make docs``."""

import re
from pathlib import Path
from typing import Any

import seqssgd

ROOT = Path(__file__).resolve().parents[1]

project = "seqssgd"
author = copyright = "the seqssgd authors"
version = release = seqssgd.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = False  # torch has no inventory at hand, and every second signature names it

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "seqssgd"


def files_of_the_repository(app: Any, name: str, text: list[str]) -> None:
    """Links to files outside of this folder work where the pages are read beside the code; here they become names.

    Pictures from there are taken along.
    """

    def named(match: re.Match) -> str:
        path = (ROOT / "docs" / match[2]).resolve()
        if not path.exists():
            raise FileNotFoundError(f"docs/{name}.md links to {match[2]}, which is not there")
        return f"{match[1]} (`{path.relative_to(ROOT)}`)"

    text[0] = re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#]+)[^)]*\)", named, text[0])


def setup(app: Any) -> None:
    app.connect("source-read", files_of_the_repository)
