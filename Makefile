# Every target sets up what it needs; `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test check lint bench bench-torchdistill clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.ready  ## Make .venv with kdbench in it (several GB of PyTorch, once)

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "kdbench needs Python 3.11 to 3.13: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: setup  ## Train a teacher and nine students on digits, print the table (under 3 minutes)
	@$(BIN)/python -m kdbench.train method=ce student=resnet20 logger=wandb runs_dir=runs/quickstart
	@$(BIN)/python -m kdbench.train +experiments=quickstart
	@echo
	@$(BIN)/python -m kdbench.table runs/quickstart
	@echo
	@echo "Records:           runs/quickstart/*/record.json"
	@echo "Offline W&B runs:  runs/quickstart/*/wandb/offline-run-* (send them with: wandb sync)"

test: setup  ## Lint, then every test; uses ../shared/data or KDBENCH_DATA where there is one
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest

lint: setup  ## Ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Side by side in one run, ratios with their spread, one JSON line last. QUICK=1: under four minutes
# on two CPU cores. TORCHDISTILL=1: torchdistill's step too, from a venv beside the same PyTorch.
bench: setup $(if $(TORCHDISTILL),bench-torchdistill)  ## Measure kdbench against the plain loop (QUICK=1, TORCHDISTILL=1)
	@$(BIN)/python -m benchmarks.run $(if $(QUICK),--quick) $(if $(TORCHDISTILL),--torchdistill)

bench-torchdistill: setup
	@$(BIN)/python benchmarks/torchdistill_venv.py

check: test  ## What continuous integration runs

clean:  ## Remove the environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
