# Every target works on a machine that has only Python and make: it first makes .venv and installs into it what is needed.
#
#   make demo    trains, evaluates, saves, reloads and predicts, on data that it makes itself
#   make test    the whole test-suite
#   make test-oldest   the same with the oldest Transformers that is supported, in .venv-oldest
#   make lint    ruff: rules and format
#   make types   mypy --strict
#   make docs    the documentation, into site/; a broken link fails
#   make peer    Transformers' own model tests, on our models
#   make release-check   builds sdist and wheel into dist/, and uses the wheel in an empty environment
#
# Without a GPU, PyPI's torch for Linux still downloads gigabytes of CUDA. The CPU build:
#   make demo PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_OPTIONS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: venv demo test test-oldest lint types docs peer release-check

venv: $(INSTALLED)

# Installed again only when what is to be installed has changed.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("$(PYTHON) is " + sys.version.split()[0] + \
		", Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt -e ".[dev,demo,docs]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile

test-oldest:
	$(MAKE) venv VENV=.venv-oldest
	.venv-oldest/bin/python -m pip install --quiet $(PIP_OPTIONS) -r constraints-oldest.txt
	.venv-oldest/bin/python -m pytest -n auto --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

peer: $(INSTALLED)
	$(BIN)/python tests/peer_suite.py

# In environments of its own, so not in .venv.
release-check:
	$(PYTHON) tests/release_check.py $(PIP_OPTIONS)
