"""The pages of the documentation: their code runs, their links lead somewhere, every public name is in them."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from programs import load

from seqssgd.training import parse_recipe

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("**/*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def code(page: Path) -> str:
    """The Python of a page: one program, from above to below."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))


# in_your_trainer.md needs the trainers: tests/test_examples.py
@pytest.mark.parametrize(
    "page", [page for page in PAGES if code(page) and page.stem != "in_your_trainer"], ids=lambda page: page.stem
)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    exec(compile(code(page), str(page), "exec"), names)
    assert len(names) > 2


def test_the_loops_of_the_first_page_train():
    """Not only do they run: the loss that the page's model has at the end is that of a model that has learned."""
    names: dict = {"__name__": "page"}
    exec(code(DOCS / "in_your_loop.md"), names)
    x, y = names["inputs"], names["inputs"].sum(1, keepdim=True)
    assert names["loss_fn"](names["model"](x), y) < 0.5 * y.square().mean()


def test_links_lead_somewhere():
    for page in PAGES:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.relative_to(ROOT)}: {link}"


def test_commands_name_programs_and_options_that_there_are():
    tried = 0
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                named = [
                    word for word in words if re.fullmatch(r"(recipes|data_prep|benchmarks)/[\w/]+\.(py|yaml)", word)
                ]
                for name in named:
                    assert (ROOT / name).is_file(), f"{page.name}: {name}"
                own = any(word.endswith(".yaml") and word not in named for word in words)  # a file that the page makes
                if words[:1] == ["python"] and words[1].endswith("/train.py") and "…" not in words and not own:
                    program = load(words[1])
                    words = [str(ROOT / word) if word in named else word for word in words]
                    words[words.index("--data") + 1] = str(ROOT / "docs")  # any folder that is not empty
                    assert parse_recipe(program.Config, words[2:]).config.seed == 0
                    tried += 1
    assert tried > 2


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"^[\w/]+$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES} == {"index", *listed}


def test_public_names_are_documented_and_have_docstrings():
    shown = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.glob("api/*.md"))
    modules = re.findall(r"automodule:: ([\w.]+)", shown)
    for package in ("optim", "training", "report"):
        assert f"seqssgd.{package}" in modules
    for path in (ROOT / "seqssgd/models").glob("[!_]*.py"):
        assert f"seqssgd.models.{path.stem}" in modules
    for name in modules:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", []):
            thing = getattr(module, public)
            assert getattr(thing, "__doc__", None) or not callable(thing), f"{name}.{public} has no docstring"


def test_the_picture_of_the_architecture_is_drawn_and_true():
    """It is what its program draws, and no package of the picture imports one from a row above."""
    program = load("docs/architecture.py")
    assert (DOCS / "architecture.svg").read_text(encoding="utf-8") == program.drawing()
    rows = {name: number for number, row in enumerate(program.ROWS) for name, _ in row}
    for package in (name for name in rows if (ROOT / "seqssgd" / name).is_dir()):
        for path in (ROOT / "seqssgd" / package).rglob("*.py"):
            for imported in imports(path):
                below = rows.get(imported, len(rows)) >= rows[package]
                assert below or imported not in rows, f"{path.relative_to(ROOT)} imports seqssgd.{imported}"


def imports(path: Path) -> set[str]:
    """The packages of seqssgd that a module imports, anywhere in it."""
    found, here = set(), path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) + 1 - node.level] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("seqssgd.")}


def test_every_method_and_its_settings_are_in_the_table_of_the_recipes():
    from seqssgd.training.methods import LEVEL, METHODS

    rows = re.findall(r"^\| (`.*?`) \|.*?\| (.*?) \|", (DOCS / "recipes.md").read_text(encoding="utf-8"), re.MULTILINE)
    told = {name: set(re.findall(r"`(\w+)`", settings)) for names, settings in rows for name in names.split("`")[1::2]}
    assert set(METHODS) <= set(told)
    for name, method in METHODS.items():
        one_of_two = {"copies", "eta", "average_decay"}  # settings of one method of two in a row
        assert told[name] - one_of_two <= set(method.settings), name
        named = set(method.settings) - {*LEVEL, "distribution", "granularity"}
        assert named <= told[name], (name, named)
