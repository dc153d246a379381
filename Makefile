# Every target works on a machine that has only Python and make: it first makes .venv and installs into it what is needed.
#
#   make demo    trains, evaluates, saves, reloads and predicts, on data that it makes itself
#   make test    the whole test-suite
#   make test-oldest   the same with the oldest Transformers that is supported, in .venv-oldest
#   make lint    ruff: rules and format
#   make types   mypy --strict
#   make peer    Transformers' own model tests, on our models
#
# Without a GPU, PyPI's torch for Linux still downloads gigabytes of CUDA. The CPU build:
#   make demo PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_OPTIONS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: venv demo test test-oldest lint types peer

venv: $(INSTALLED)

# Installed again only when what is to be installed has changed.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("$(PYTHON) is " + sys.version.split()[0] + \
		", Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) -c constraints.txt -e ".[dev,demo]"
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile

# Before Transformers 5.23, its DeBERTa calls a function of which torch warns, and here warnings are errors.
test-oldest:
	$(MAKE) venv VENV=.venv-oldest
	.venv-oldest/bin/python -m pip install --quiet $(PIP_OPTIONS) -r constraints-oldest.txt
	.venv-oldest/bin/python -m pytest -n auto --dist loadfile \
		-W 'ignore:`torch.jit.script` is deprecated:DeprecationWarning'

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

peer: $(INSTALLED)
	$(BIN)/python tests/peer_suite.py
