# `make demo` and `make test` work on a fresh machine: they make .venv on first use. `make help` lists the targets.
# An environment of your own:       make test VENV=/path/to/venv
# Another Python to make it with:   make test PYTHON=python3.12
# Further options for pip install:  make test PIP_FLAGS="--no-index --find-links wheels"

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
# Tests of one file stay together; with fewer or more processes: make test PYTEST_FLAGS="-n 1"
PYTEST_FLAGS ?= -n auto --maxprocesses 4
DEMO_DIR ?= demo-output

RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install -q $(PIP_FLAGS) -c constraints.txt
SETUP_FILES := pyproject.toml setup.py constraints.txt
USER_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
SITE_STAMP := $(VENV)/.installed-site

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-cluster test-gpu gpu-check lint format proto models docs site train-mini bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "fcnproto needs Python 3.10 or newer; choose one with: make PYTHON=python3.x"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(USER_STAMP): $(SETUP_FILES) | $(RUN)
	$(INSTALL) -e .
	@touch $@

$(DEV_STAMP): $(SETUP_FILES) | $(RUN)
	$(INSTALL) -e '.[dev]'
	@touch $@ $(USER_STAMP)

demo: $(USER_STAMP)  ## segment newly drawn scenes and check the result (picture in demo-output/)
	$(RUN) -m fcnproto demo -o $(DEMO_DIR)

test: $(DEV_STAMP)  ## run the tests, without the slow ones and those for a GPU
	$(RUN) -m pytest --dist loadfile $(PYTEST_FLAGS)

test-all: $(DEV_STAMP)  ## run all tests but those on clusters; those for a GPU are skipped where there is none
	$(RUN) -m pytest --dist loadfile -m "not cluster" $(PYTEST_FLAGS)

test-cluster: $(DEV_STAMP)  ## run the tests that start Ray and torchrun (under five minutes on two cores)
	OMP_NUM_THREADS=1 $(RUN) -m pytest --dist loadfile -n 2 -m cluster

test-gpu: $(DEV_STAMP)  ## run the tests for a GPU
	$(RUN) -m pytest -m gpu

gpu-check: $(USER_STAMP)  ## is what is claimed of a GPU true on this one: figures in device-check/ (ten minutes)
	$(RUN) -m benchmarks.device_check

lint: $(DEV_STAMP)  ## check style and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: $(DEV_STAMP)  ## put the code into the house's style
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

proto: $(DEV_STAMP)  ## make fcnproto/schema/caffe_pb2.py from protos/
	$(RUN) protos/make.py

models: $(USER_STAMP)  ## write the prototxt files of the published nets from their definitions
	$(RUN) -m models.write

# Threads that wait asleep don't slow the others down where cores are shared.
train-mini: $(USER_STAMP)  ## train fcn-mini anew (half an hour on two cores; started again, it goes on)
	OMP_WAIT_POLICY=PASSIVE $(RUN) models/fcn-mini/train.py

docs: $(DEV_STAMP)  ## write docs/layers.md from the registry of layer types, docs/check.md, and docs/samples
	$(RUN) docs/make_layers.py
	$(RUN) docs/make_dialects.py
	$(RUN) docs/make_check.py
	$(RUN) docs/make_samples.py

$(SITE_STAMP): $(SETUP_FILES) | $(RUN)
	$(INSTALL) -e '.[site]'
	@touch $@

site: $(SITE_STAMP)  ## build the manual in site/, its links checked
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build -q

bench: $(USER_STAMP)  ## measure loading, inference beside other engines and training, in one table (a quarter of an hour)
	$(RUN) -m benchmarks

clean:  ## remove what the targets above made, but not the environment
	rm -rf build dist fcnproto.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-output
	find fcnproto models tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
