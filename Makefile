# Verbs of this repository. `make demo` and `make test` set everything up themselves.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help setup demo test lint check bench postgresql prometheus deployment anvil mlserver chromium screenshots

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

LEDGER ?= sql
demo: $(READY) $(if $(filter evm,$(LEDGER)),anvil)  ## Start a mesh, make paid calls on real inputs, settle, and leave it running. LEDGER=evm: on a chain.
	@$(BIN)/leben demo --ledger $(LEDGER)

# The ledger is tested on a real PostgreSQL too; where it cannot be had, those tests are skipped and say so.
postgresql:
	@command -v postgres >/dev/null || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing PostgreSQL for the tests (once) …" && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql \
	  >/dev/null; } || echo "no PostgreSQL here: apt-get install postgresql runs its tests too"

# Dashboards and alerts are tested by a real Prometheus.
prometheus:
	@command -v promtool >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  echo "installing Prometheus for the tests (once) …" && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null; } \
	  || echo "no Prometheus here: apt-get install prometheus runs its tests too"

# What `deploy/` holds is tried on the programs that read it.
deployment:
	@command -v caddy >/dev/null && command -v systemd-analyze >/dev/null || { test "$$(id -u)" = 0 && \
	  command -v apt-get >/dev/null && echo "installing Caddy and systemd for the tests (once) …" && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends caddy systemd >/dev/null; } \
	  || echo "no Caddy or systemd here: apt-get install caddy systemd runs their tests too"

# The ledger is tested on a real chain too: a node of one process, an npm package of its own, put beside the environment.
anvil:  ## Fetch the node that chain tests and `leben demo --ledger evm` use (needs Node).
	@command -v anvil >/dev/null || test -x .anvil/node_modules/.bin/anvil || { command -v npm >/dev/null && \
	  echo "fetching anvil into .anvil (once) …" && mkdir -p .anvil && \
	  npm install --silent --no-audit --no-fund --prefix .anvil @foundry-rs/anvil@1.7.1; } \
	  || echo "no Node here: npm runs the chain tests on a real node too"

# Remote models are tested on a server of other people's, in an environment of its own: it wants older packages than ours.
mlserver:
	@test -x .mlserver/bin/mlserver || { echo "installing MLServer for the tests into .mlserver (once; about three minutes) …" && \
	  $(BIN)/python -m venv .mlserver && \
	  .mlserver/bin/python -m pip install --quiet --disable-pip-version-check mlserver==1.7.1; } \
	  || echo "no MLServer here: its tests are skipped"

# The pages are tested in a real browser; where it cannot be had, those tests are skipped and say so.
chromium:
	@command -v chromedriver >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing Chromium for the tests (once) …" && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium-driver \
	  >/dev/null; } || echo "no Chromium here: apt-get install chromium-driver runs its tests too"

test: $(READY) postgresql prometheus deployment anvil mlserver chromium  ## Run all tests.
	$(BIN)/python -m pytest

lint: $(READY)  ## Format and fix what can be fixed.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(READY)  ## Check format, style, types and the import rule.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

screenshots: $(READY) prometheus chromium  ## Make the pictures of docs/operate.md anew.
	$(BIN)/python -m tests.screenshots

bench: $(READY)  ## Run the benchmarks; they print ratios and assert nothing.
	@for file in tests/benchmarks/[!_]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done
