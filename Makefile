# make venv   .venv with everything for the recipes and tests
# make demo   trains three small language models in a few minutes and compares them
# make test   lint and the whole test suite
# make test-examples   the examples in Lightning, Hugging Face's Trainer and others; installs those first
# make beam   adds what beam search with language models needs; builds KenLM: a compiler, cmake, some minutes
# make wheel  builds wheel and sdist in dist/, and trains with the wheel in an environment with torch alone
# make results   writes the tables and pictures of results in the README files, and results/README.md, from the runs
# make docs   builds the documentation: docs/_build/index.html
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: venv demo beam test test-examples wheel docs tables results
.DELETE_ON_ERROR:

venv: $(VENV)/ready

# what the recipes need, without the tools of the tests
$(VENV)/recipes: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("seqssgd needs Python 3.11 or newer: make PYTHON=python3.11 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[recipes]'
	touch $@

$(VENV)/ready: $(VENV)/recipes
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[recipes,test,benchmark,study]'
	touch $@

demo: $(VENV)/recipes
	$(RUN) recipes/demo/run.py --out demo

beam: venv
	$(RUN) -c 'import kenlm, flashlight.lib.text.decoder' 2>/dev/null || \
	    $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[beam]'

test: venv
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)
	$(RUN) -m pytest -q -n 2 --dist loadfile

# transformers imports torchaudio, whose compiled part does not load beside a CPU-only torch, and is not needed here.
test-examples: venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[examples]'
	$(RUN) -c 'import torchaudio' 2>/dev/null || rm -f $(VENV)/lib/python*/site-packages/torchaudio/lib/*torchaudio*.so
	$(RUN) -m pytest -q -n 2 --dist loadfile tests/test_examples.py tests/test_trainers.py tests/test_proxies.py

# with another Python than that of .venv: .venv/bin/python tests/wheel_check.py dist --python python3.13
wheel: venv
	rm -rf dist
	$(RUN) -m hatchling build -d dist
	$(RUN) tests/wheel_check.py dist --constraint constraints.txt

tables: venv
	$(RUN) results/tables.py

results: tables
	$(RUN) results/paper.py

docs: venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going docs docs/_build
	@echo docs/_build/index.html
