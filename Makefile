# Everything a developer or a newcomer does, one target each. `make help` explains.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo test zoo chaos check lint types proto proto-check clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/installed  ## Create .venv with the pinned dependencies and the project

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Headwater needs Python 3.11 or newer; this is " + sys.version) if sys.version_info < (3, 11) else 0'
	@echo "installing into $(VENV): a minute or two"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup  ## Train the digits over four client processes and show every round (ARGS=--json for a last line of JSON)
	$(BIN)/headwater demo $(ARGS)

test: setup  ## Run the whole test suite, a file on each processor (ARGS=... goes to pytest)
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile $(ARGS)

zoo: setup  ## Measure every whole model into docs/plan.md, then run every parity case and model
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,zoo]'
	$(BIN)/python -m tests.parity.tables docs/plan.md
	$(BIN)/python -m benchmarks.plan --write docs/plan.md
	HEADWATER_ZOO=1 $(BIN)/python -m pytest tests/parity tests/models

chaos: setup  ## Kill coordinator and client at every step of a real job, and write the table of docs/reliability.md
	$(BIN)/python -m tests.faults.sweep --write docs/reliability.md

check: setup lint types proto-check  ## Lint, format, types, and that the generated code is fresh

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd proto && $(CURDIR)/$(BIN)/buf lint

types: setup
	$(BIN)/mypy

proto: setup  ## Generate the wire modules from the .proto files
	$(BIN)/python proto/generate.py proto

proto-check: setup
	$(BIN)/python proto/generate.py --check

clean:  ## Remove what the targets made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
