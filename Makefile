# Everything starts from nothing but Python 3.11 or newer: `make run` and `make test` make what they need.
#   make test PYTHON=python3.13 VENV=.venv-3.13     for another interpreter
#   make test PYTEST_ARGS="-k splitting"            for some of the tests
#   make test JOBS=4                                for more of them at one time; each starts servers of its own
#   make chaos SECONDS=300 SEED=7                   for other times and seeds
#   make binary PYTHONS="python3.11 python3.13"     for one file that serves both

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
JOBS ?= 2
SECONDS ?= 300
SEED ?=
BINARY ?= dist/wal-ingest
PYTHONS ?= $(BIN)/python

BIN := $(VENV)/bin
RUN_READY := $(VENV)/.ready-to-run
TEST_READY := $(VENV)/.ready-to-test
BINARY_READY := $(VENV)/.ready-for-binary
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# The tests start hundreds of processes; each would compile all of its modules anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test check proof coverage bench chaos mutations binary screenshots clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(RUN_READY) ## Serve on the defaults: http://127.0.0.1:8400, data in ./data
	@exec $(BIN)/wal-ingest serve

# The types are checked beside the tests: it is the one thing here that does not use all cores.
test: style ## Check style and types, and run every test that is not slow
	@$(MAKE) --no-print-directory -j 2 types not-slow

check: style types ## Check style and types only

.PHONY: style types not-slow
style: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TEST_READY)
	$(BIN)/mypy

not-slow: $(TEST_READY)
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

proof: $(TEST_READY) ## Run the slow proofs: the minute-long outage, more rounds
	WAL_TESTS_EXEC=1 $(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

COVERED := wal_ingest/wal/*,wal_ingest/flusher/*

coverage: $(TEST_READY) ## Print the branch coverage of the WAL and the flusher; all of it is asked for
	$(BIN)/coverage run --branch --include='$(COVERED)' -m pytest -q -m "not slow" tests/wal tests/flusher tests/model $(PYTEST_ARGS)
	$(BIN)/coverage report --show-missing --skip-covered --include='$(COVERED)' --fail-under=100

bench: $(TEST_READY) ## Measure points/s, CPU per point and the latency of the 202
	$(BIN)/python -m ops.bench.ingest

chaos: $(TEST_READY) ## Strike faults under load for SECONDS, then account for every point
	$(BIN)/python -m ops.chaos --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

mutations: $(TEST_READY) ## Show that chaos catches each of the deliberately broken builds
	$(BIN)/python -m ops.chaos.mutations

# Our own wheel first: given the folder, pex would read all that lies in it, environments and caches too. The shebang is a
# fallback: the file begins with a few lines of sh that look for a Python it was built for.
binary: $(BINARY_READY) ## Build dist/wal-ingest, one file that needs nothing but Python
	@mkdir -p $(dir $(BINARY))
	@rm -rf $(BINARY).wheel
	@$(PIP) wheel --no-deps --wheel-dir $(BINARY).wheel .
	@$(BIN)/pex $(BINARY).wheel/*.whl --console-script wal-ingest --output-file $(BINARY) --venv --sh-boot \
		--python-shebang '/usr/bin/env python3' $(foreach python,$(PYTHONS),--python $(python))
	@rm -rf $(BINARY).wheel
	@echo "$(BINARY) is for CPython$$(for python in $(PYTHONS); do \
		$$python -c 'import sys; print(" %d.%d" % sys.version_info[:2], end="")'; done), on $$(uname -m)"

screenshots: $(TEST_READY) ## Make the pictures of the status page anew: ten minutes of a real node
	$(BIN)/python -m ops.screenshots

clean: ## Remove what was built here; ./data stays
	@echo "removing $(VENV), the caches of the tools, node_modules and build results; ./data stays"
	@rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage tests/clients/node_modules
	@find wal_ingest ops tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed and $(PYTHON) is not: say PYTHON=python3.12 or the like" >&2; exit 1; }
	@echo "making the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "$(PYTHON) cannot make environments: on Debian install python3-venv" >&2; exit 1; }

$(RUN_READY): pyproject.toml | $(BIN)/python
	@echo "installing wal-ingest into $(VENV)"
	@$(PIP) install --editable .
	@touch $@

# Dependency groups need pip 25.1; the one that a Python brings along may be older.
$(TEST_READY): pyproject.toml | $(RUN_READY)
	@echo "installing the tools for the tests into $(VENV)"
	@$(PIP) install 'pip>=25.1'
	@$(PIP) install --group dev
	@touch $@

$(BINARY_READY): pyproject.toml | $(BIN)/python
	@echo "installing what builds the one-file program into $(VENV)"
	@$(PIP) install 'pip>=25.1'
	@$(PIP) install --group binary
	@touch $@
