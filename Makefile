# Every target sets up what it needs; `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help

# A given value may be the name of a foreign file, so make neither expands it nor puts it into a
# recipe. Recipes read the variable, quoted or, where it holds several words, without globs (set -f).
GIVEN := BUDGET TEACHER TEACHERS ARGS RUNS IMAGENET KDBENCH_DATA PAIR TESTS COUNT SEED KINDS QUICK TORCHDISTILL
$(foreach name,$(GIVEN),$(if $(filter undefined,$(origin $(name))),,\
  $(eval override export $(name) := $$(value $(name)))))

.PHONY: help setup quickstart reproduce-cifar100 reproduce-cpu reproduce-imagenet campaign table test test-long test-processors coverage check lint bench bench-torchdistill chaos load clean

help:  ## List the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-19s %s\n", $$1, $$2}'

setup: $(VENV)/.ready  ## Make .venv with kdbench in it (several GB of PyTorch, once)

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "kdbench needs Python 3.11 to 3.13: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

quickstart: setup  ## Train a teacher and nine students on digits, print the table (about two minutes on two idle cores)
	@$(BIN)/python -m kdbench.train method=ce student=resnet20 logger=wandb runs_dir=runs/quickstart
	@$(BIN)/python -m kdbench.train +experiments=quickstart
	@echo
	@$(BIN)/python -m kdbench.table runs/quickstart
	@echo
	@echo "Records:           runs/quickstart/*/record.json"
	@echo "Offline W&B runs:  runs/quickstart/*/wandb/offline-run-* (send them with: wandb sync)"

# These resume after a stop at any point. ARGS: further overrides, as ARGS='seed=0 method=ce,kd'.
# TEACHER: a checkpoint to load instead of training one. Without KDBENCH_DATA, CIFAR-100 is downloaded into data/.
TRAIN = set -f && $(BIN)/python -m kdbench.train
DOWNLOAD = $(if $(KDBENCH_DATA),,dataset.download=true)
export TEACHER_ARGS := $(filter-out method=% student=% seed=%,$(ARGS))
TEACHER_RUN = method=ce seed=1000 $(DOWNLOAD) $$TEACHER_ARGS

reproduce-cifar100: setup  ## Teacher, every method, five seeds, table: resnet32x4 -> resnet8x4 (TEACHER=FILE, ARGS=...)
	$(if $(TEACHER),,$(TRAIN) +experiments=teachers_cifar100 student=resnet32x4 $(TEACHER_RUN))
	$(TRAIN) +experiments=cifar100_resnet32x4_resnet8x4 $(DOWNLOAD) $$ARGS \
	  $(if $(TEACHER),"teacher.resnet32x4.checkpoint=$$TEACHER")
	$(BIN)/python -m kdbench.table runs/cifar100

reproduce-cpu: setup  ## Nine methods on CIFAR-100 in a night on two CPU cores: resnet32 -> resnet8 (TEACHER=FILE, ARGS=...)
	$(if $(TEACHER),,$(TRAIN) dataset=cifar100 schedule=cifar100_15_epochs runs_dir=runs/cifar100_cpu \
	  student=resnet32 $(TEACHER_RUN))
	$(TRAIN) +experiments=cifar100_cpu $(DOWNLOAD) $$ARGS $(if $(TEACHER),"teacher.resnet32.checkpoint=$$TEACHER")
	$(BIN)/python -m kdbench.table runs/cifar100_cpu

# IMAGENET holds train/WNID and val/WNID; TEACHERS holds torchvision's resnet34-333f7ec4.pth and resnet50-19c8e357.pth.
PAIRS = resnet34_resnet18 resnet50_mobilenetv1
IMAGENET_TEACHER_resnet34_resnet18 = "teacher.ResNet34.checkpoint=$$TEACHERS/resnet34-333f7ec4.pth"
IMAGENET_TEACHER_resnet50_mobilenetv1 = "teacher.ResNet50.checkpoint=$$TEACHERS/resnet50-19c8e357.pth"

reproduce-imagenet: setup  ## Two pairs, sixteen methods, three seeds on ImageNet (IMAGENET=DIR TEACHERS=DIR, PAIR=..., ARGS=...)
	@test -n "$$IMAGENET" -a -n "$$TEACHERS" || \
	  { echo "make reproduce-imagenet needs IMAGENET=DIR and TEACHERS=DIR"; exit 1; }
	$(foreach pair,$(if $(PAIR),$(filter $(PAIR),$(PAIRS)),$(PAIRS)),$(TRAIN) +experiments=imagenet_$(pair) \
	  "dataset.root=$$IMAGENET" $(IMAGENET_TEACHER_$(pair)) $$ARGS &&) true
	$(BIN)/python -m kdbench.table runs/imagenet

# The teacher is the committed one. A budget is minutes or hours: 25m, 8h.
campaign: setup  ## The most valuable runs of the CIFAR-100 table that fit into BUDGET=25m, resumable anywhere (TEACHER=FILE, ARGS=...)
	@[[ "$$BUDGET" =~ ^([0-9]{1,6})([mh])$$ ]] || \
	  { echo "make campaign needs a time in minutes or hours: BUDGET=25m, BUDGET=8h"; exit 1; }; \
	minutes=$$(( 10#$${BUDGET%[mh]} )); [[ "$$BUDGET" == *m ]] || minutes=$$(( 60 * minutes )); \
	$(TRAIN) +experiments=campaign_cifar100 hydra.launcher.minutes=$$minutes $(DOWNLOAD) $$ARGS \
	  $(if $(TEACHER),"teacher.resnet32x4.checkpoint=$$TEACHER")

table: setup  ## Make results/tables and results/index.html anew; RUNS=DIR: take in that folder's finished runs first
	$(BIN)/python -m kdbench.report $(if $(RUNS),--take "$$RUNS")

# One process per core, eight at most, each with one thread; more would compete for the cores. Files
# in their order: by the number of tests, as by default, the longest tests would come last.
test: setup  ## Lint, and every test; uses ../shared/data or KDBENCH_DATA where there is one
	@$(MAKE) --no-print-directory lint & lint=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$lint || { echo "lint failed: see above, or make lint"; exit 1; }; exit $$tests

test-long: setup  ## The tests that take a minute, or hold what others hold more coarsely: every method under exact, Slurm, 119,000 bad inputs
	$(BIN)/python -m pytest -m long

# This uses PyTorch's and oneDNN's kernels for older processors, and two threads.
test-processors: setup  ## The numerical tests as other processors compute them; a part of continuous integration
	@$(BIN)/python tests/support/processors.py

# This is apart from `make test`, since the tests take up to 1.6 times as long. TESTS: tests to run.
coverage: setup  ## The tests, and the lines that none reaches; fails where one is an error branch (TESTS=...)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $$TESTS
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report
	@$(BIN)/python tests/support/error_branches.py

lint: setup  ## Ruff: style and format; mypy: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Both run side by side; ratios are printed with their spread, and one JSON line last. QUICK=1 takes
# under four minutes on two CPU cores. TORCHDISTILL=1 adds torchdistill's step, from its own venv.
bench: setup $(if $(TORCHDISTILL),bench-torchdistill)  ## Measure kdbench against the plain loop (QUICK=1, TORCHDISTILL=1)
	@$(BIN)/python -m benchmarks.run $(if $(QUICK),--quick) $(if $(TORCHDISTILL),--torchdistill)

# The quick part is among the long tests. A run of it that was stopped goes on, as long as the code is the same.
chaos: setup  ## Kill runs at random moments, resume, compare every bit, write docs/reliability.md (COUNT=200, SEED=0, KINDS=fused,...)
	$(BIN)/python -m chaos.run --count "$${COUNT:-200}" --seed "$${SEED:-0}" --kinds "$$KINDS" --page docs/reliability.md

load: setup  ## A sweep of 500 tiny runs, killed half-way: records, memory, open files (COUNT=500)
	$(BIN)/python -m chaos.load --count "$${COUNT:-500}" --page docs/reliability.md

bench-torchdistill: setup
	@$(BIN)/python benchmarks/torchdistill_venv.py

check: test  ## What continuous integration runs

clean:  ## Remove the environment and caches; runs and data stay
	rm -rf $(VENV) .coverage* .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
