# Everything runs in .venv, which `setup` makes. Every target implies it; it is quick when nothing changed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test chaos simulate images test-cluster check generate protos bench bench-recovery
.DEFAULT_GOAL := setup

# Compiled here, because each of many processes would do it anew where PYTHONDONTWRITEBYTECODE is set: 0.4 s a start.
setup: $(READY)
	@$(BIN)/python -m compileall -q services

# torch goes first: asked for exactly, pip takes the build that the machine's index has for it (a CPU one will do).
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is missing; on Debian: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11; name another one: make setup PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing torch and the rest into .venv: a few minutes, once"
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[all,dev]"
	@touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# make chaos MINUTES=30 SEED=7: kills, freezes and cuts everything at random while jobs run. As root: partitions, too.
MINUTES ?= 5
chaos: setup
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/protos.py check
	$(BIN)/python tools/reference.py check
	$(BIN)/python tools/chart.py check

# After changes of settings, commands, job specs or chart values: the files that are made from them.
generate: setup
	$(BIN)/python tools/protos.py write
	$(BIN)/python tools/reference.py write
	$(BIN)/python tools/chart.py write
	$(BIN)/python -m shoal.jobspec > docs/job.schema.json

protos: setup
	$(BIN)/python tools/protos.py write

# With docker, podman or buildah: docs/images.md.
images: setup
	$(BIN)/python tools/images.py

# KUBECONFIG names the cluster; its nodes have the images, or can pull them: docs/operate.md, "Testing a cluster".
test-cluster: setup
	$(BIN)/python -m pytest tests/cluster -m cluster

# The same seed is the same history: `make simulate SEEDS=1 FIRST=823` shows one.
SEEDS ?= 2000
FIRST ?= 1
simulate: setup
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)

bench: setup
	$(BIN)/python -m tests.benchmarks

# How long faults hold a job up: docs/benchmarks.md. 20 minutes; RUNS=2 takes a few.
RUNS ?= 30
bench-recovery: setup
	$(BIN)/python -m tests.benchmarks.recovery --runs $(RUNS)
