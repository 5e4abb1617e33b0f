# Verbs of this repository. `make demo` and `make test` set everything up themselves.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help setup demo test test-full lint check bench screenshots debian anvil mlserver others

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

# The ledger is tested on a real PostgreSQL, dashboards and alerts by a real Prometheus, what `deploy/` holds by the programs
# that read it, pages in a real browser, several machines in network namespaces. Where one of them cannot be had its tests
# are skipped and say so.
debian:
	@want=; have() { command -v $$1 >/dev/null || ls /usr/lib/postgresql/*/bin/$$1 >/dev/null 2>&1; }; \
	  have postgres || want="$$want postgresql"; have promtool || want="$$want prometheus"; have caddy || want="$$want caddy"; \
	  have systemd-analyze || want="$$want systemd"; have chromedriver || want="$$want chromium-driver"; \
	  have ip || want="$$want iproute2"; \
	  test -z "$$want" || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  echo "installing$$want for the tests (once) …" && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$want >/dev/null; } || \
	  echo "their tests are skipped without them: apt-get install$$want"

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

# Workers wait for a mesh or a timer much of the time, so there is one more of them than two cores.
WORKERS ?= 3
# A mesh is a dozen processes: with compiled modules on disk none of them compiles what another has.
test test-full: export PYTHONDONTWRITEBYTECODE :=
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS)
test: $(READY)  ## Run all tests.
	@$(MAKE) --no-print-directory -j3 debian anvil mlserver  # side by side: each of them mostly waits for the network
	$(PYTEST)

test-full: $(READY)  ## Run all tests at their highest setting: every back-end, many more random examples.
	@$(MAKE) --no-print-directory -j3 debian anvil mlserver
	$(PYTEST) --full

lint: $(READY)  ## Format and fix what can be fixed.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: $(READY)  ## Check format, style, types and the import rule.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/benchmarks/mypy.ini tests/benchmarks/*.py tests/benchmarks/echo/*.py
	$(BIN)/lint-imports

screenshots: $(READY) debian  ## Make the pictures of docs/operate.md anew.
	$(BIN)/python -m tests.screenshots

# Other model servers, each in an environment of its own: only a benchmark needs them.
OTHERS := litserve==0.2.19 bentoml==1.4.40 kserve==0.21.0
others: mlserver
	@for package in $(OTHERS); do place=.others/$${package%%=*}; test -e $$place/.ready || { \
	  echo "installing $$package for the benchmarks into $$place (once) …" && $(BIN)/python -m venv $$place && \
	  $$place/bin/python -m pip install --quiet --disable-pip-version-check $$package && touch $$place/.ready; } || exit 1; done

bench: $(READY) others  ## Run the benchmarks; they print ratios and assert nothing; gpu.py and scale.py write their tables into docs/.
	@for file in tests/benchmarks/[!_]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done
