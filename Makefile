# Works on a machine with Python 3.11 or newer, git and make; everything else goes into .venv.
# On Linux without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves gigabytes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Stamps: what .venv holds, as of this pyproject.toml and constraints.txt.
BENCH := $(VENV)/.stamp-bench
DEV := $(VENV)/.stamp-dev
PEERS := $(VENV)/.stamp-peers
DOCS := $(VENV)/.stamp-docs
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo bench smoke test lint types docs format wheel-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(BENCH) ## train and compare a few estimators on this machine
	$(BIN)/gradthrough demo

bench: $(PEERS) ## time the kernels, ten minutes; BENCH_OPTIONS=--full: all of it, hours
	$(BIN)/python benchmarks/kernels.py --out benchmarks/results/kernels.csv --page docs/kernels.md $(BENCH_OPTIONS)

smoke: $(BENCH) ## run every experiment for a few seconds, without data, and report it
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; export OMP_NUM_THREADS=1; \
	$(BIN)/gradthrough bench sweep experiments/*.toml --budget smoke --out "$$dir"; \
	$(BIN)/gradthrough bench report experiments --results "$$dir" --markdown "$$dir/results.md" --html "$$dir/results.html"

test: $(DEV) ## run the tests and the examples in the docstrings
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(DEV) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV) ## check the types
	$(BIN)/pyright

docs: $(DOCS) ## build the documentation into docs/_build; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo 'docs/_build/index.html is built.'

format: $(DEV) ## rewrite the files in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel-check: $(DEV) ## build the wheel; run the README's examples with it and torch alone
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	$(BIN)/python -m build --wheel --outdir "$$dir" .; \
	$(BIN)/python -m venv "$$dir/venv"; \
	"$$dir/venv/bin/python" -m pip --disable-pip-version-check install --quiet -c constraints.txt "$$dir"/*.whl; \
	"$$dir/venv/bin/python" -I -W 'ignore:Failed to initialize NumPy' scripts/check_wheel.py README.md

clean: ## remove .venv and all that was built or cached
	rm -rf $(VENV) build dist docs/_build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/pip:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "gradthrough needs Python 3.11 or newer, and there is no '$(PYTHON)' here. Name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "gradthrough needs Python 3.11 or newer, but '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1). Name another: make PYTHON=python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(BENCH): $(PINS) | $(VENV)/bin/pip
	@echo 'Installing .[bench] into $(VENV): minutes, the first time'
	@$(PIP) install --quiet -c constraints.txt -e '.[bench]'
	@touch $@

$(DEV): $(PINS) | $(VENV)/bin/pip
	@echo 'Installing .[bench,clients,cluster,dev] into $(VENV): minutes, the first time'
	@$(PIP) install --quiet -c constraints.txt -e '.[bench,clients,cluster,dev]'
	@touch $(BENCH) $@

$(PEERS): $(PINS) | $(VENV)/bin/pip
	@echo 'Installing .[bench,peers] into $(VENV): minutes, the first time'
	@$(PIP) install --quiet -c constraints.txt -e '.[bench,peers]'
	@touch $(BENCH) $@

$(DOCS): $(PINS) | $(VENV)/bin/pip
	@echo 'Installing .[bench,clients,docs] into $(VENV): minutes, the first time'
	@$(PIP) install --quiet -c constraints.txt -e '.[bench,clients,docs]'
	@touch $(BENCH) $@
