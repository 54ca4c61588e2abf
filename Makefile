# One command a job; each sets up what it needs. `make help` lists them.
SHELL := /bin/bash
# Threads that wait sleep: beside other work on the machine, spinning makes training steps ten times as long (docs/log.md).
export OMP_WAIT_POLICY ?= PASSIVE
.DEFAULT_GOAL := help

# The first of these that is Python 3.11 or 3.12; `make PYTHON=/path/to/python3.12 setup` overrides.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# pip keeps every download until the last package is installed: PyTorch by itself first needs 2 GB less disk on the way.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help setup demo test test-fast proof check docs bench clean

help: ## list the jobs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(READY) ## virtual environment in .venv, pinned dependencies, the package (editable)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; install one, or: make PYTHON=/path/to/python3.12 setup" >&2; exit 1; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version) (a few minutes the first time, 8 GB)"
	$(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) torch torchvision
	$(INSTALL) --editable '.[all,demo,dev]'
	@touch $(READY)

demo: $(READY) ## mine photographs and drawn scenes, train, judge: the whole road in minutes
	PATH="$(CURDIR)/$(BIN):$$PATH" bash pipelines/demo.sh

# A process for each core and one more (tests/slow.py), each with one thread; a file's tests stay together, for what they share.
# Compiled test files are kept, also where the environment asks Python not to: each process would compile all of them again.
TOGETHER := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile \
	--no-loadscope-reorder --max-worker-restart 2

test: $(READY) ## the whole test suite, on all cores (minutes)
	$(TOGETHER) $(ARGS)

test-fast: $(READY) ## the tests that start nothing and train nothing, for while one edits (about a minute)
	$(TOGETHER) -m "not slow" $(ARGS)

proof: $(READY) ## the smallest cell of the learning benchmark once more, compared bit for bit (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/learning proof

check: $(READY) docs ## style, formatting, types, and that the documentation builds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy univip_stream pipelines/demo_images.py

docs: $(READY) ## the documentation as a site in out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY) ## every benchmark, ratios against a peer measured in the same run
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

clean: ## remove the virtual environment, caches and the demo's output
	rm -rf $(VENV) out .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info build
