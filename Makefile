# Verbs of this repository. `make demo` and `make test` set everything up themselves.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help setup demo test lint check bench

help:  ## Show the verbs.
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 8

setup: $(READY)  ## Make the environment in .venv.

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "installing into .venv (once; about two minutes) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0  # alone and first: a build that is at hand is used, and nothing is fetched twice
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: $(READY)  ## Start a mesh, make paid calls on real inputs, settle, and leave it running.
	@$(BIN)/leben demo

test: $(READY)  ## Run all tests.
	$(BIN)/python -m pytest

lint: $(READY)  ## Format and fix what can be fixed.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(READY)  ## Check format, style, types and the import rule.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## Run the benchmarks; they print ratios and assert nothing.
	@for file in tests/benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done
