# `make help` lists what there is. Every target sets itself up; a second run starts in seconds.
#
# PYTHON=python3.12   the interpreter for .venv; without it the first fitting one on the PATH
# ARGS="..."          further arguments of test, test-all, train, serve and container
# IMAGE=, PROMPT=     your own picture and text for demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What runs the pipeline and the server, and nothing else; an environment with everything in it serves as well.
PIPELINE_READY := $(if $(wildcard $(READY)),$(READY),$(VENV)/.ready-pipeline)

# A prompt may hold anything a person types. It reaches the shell through the environment, never as
# text of a recipe, and `value` keeps make from reading a dollar sign in it.
override IMAGE := $(value IMAGE)
override PROMPT := $(value PROMPT)
export IMAGE PROMPT

# How long PyTorch's threads spin before they sleep. For good, as by default, they take the processors
# from whatever else runs, and a step is six times as slow beside another process; not at all, and the
# small models take 1.6 times as long, since waking is slower than their work.
export GOMP_SPINCOUNT ?= 1000

# Some machines and containers forbid Python to keep what it has compiled. Each process then compiles PyTorch
# and diffusers anew, for 12 of the 19 seconds that they take to import.
override PYTHONDONTWRITEBYTECODE :=
export PYTHONDONTWRITEBYTECODE

# For all platforms at once, and without a word of where the packages came from.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock"

# Python 3.11 to 3.13, with the module that makes environments.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(PIPELINE_READY) ## from the notebooks to a served animation; IMAGE=photo.jpg PROMPT="a red circle moves right" for your own
	@$(BIN)/python -m pipeline demo $${IMAGE:+"--image=$$IMAGE"} $${PROMPT:+"--prompt=$$PROMPT"}

# tests/conftest.py says how many processes, and which tests stay together since they share what they start.
WORKERS := -n auto --dist loadfile

.PHONY: test
test: $(READY) ## all tests but the slow ones
	$(BIN)/python -m pytest $(WORKERS) -m "not slow" $(ARGS)

.PHONY: test-all
test-all: $(READY) ## all tests
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

.PHONY: lint
lint: $(READY) ## style of code and notebooks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@for book in notebooks/*.ipynb; do [ ! -e "$$book" ] || $(BIN)/nbstripout --verify "$$book"; done

.PHONY: format
format: $(READY) ## rewrite code in the project's style, and take the output out of notebooks
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	@for book in notebooks/*.ipynb; do [ ! -e "$$book" ] || { $(BIN)/jupytext --sync "$$book" && $(BIN)/nbstripout "$$book"; }; done

.PHONY: types
types: $(READY) ## mypy, strict
	$(BIN)/mypy

.PHONY: check
check: lint types test ## lint, types and test: what a change has to pass

.PHONY: train
train: $(PIPELINE_READY) ## train the embedded teacher again
	$(BIN)/python -m pipeline train $(ARGS)

.PHONY: serve
serve: $(PIPELINE_READY) ## serve the newest model of the store
	$(BIN)/bentoml serve $(ARGS)

# What has to hold; with a fleet, a traffic history and a benchmark of your own, a file of your own.
LAUNCH ?= docs/examples/launch.yaml

.PHONY: launch-check
launch-check: $(READY) ## go or no-go: model, capacity, load tests and a fault drill on a fleet of this machine
	@$(BIN)/python -m loadtests launch --file $(LAUNCH) --out runs/launch-check

.PHONY: container
container: $(READY) ## build the image of a server, start it, animate, stop it; ARGS="--mounted" leaves the model out
	@$(BIN)/python -m deploy.container $(ARGS)

.PHONY: docs
docs: $(READY) ## the reference of all modules, from their docstrings: build/docs/index.html
	@$(BIN)/python scripts/make_docs.py --out build/docs

.PHONY: lock
lock: $(READY) ## write the locks anew; ARGS=--upgrade takes newer releases
	$(LOCK) --extra dev $(ARGS) pyproject.toml -o constraints.txt
	$(LOCK) --extra serve --extra marks --no-annotate -c constraints.txt pyproject.toml -o serving/requirements.txt

.PHONY: hooks
hooks: $(READY) ## check each commit with pre-commit
	$(BIN)/pre-commit install

.PHONY: clean
clean: ## remove caches and builds; .venv, runs and the model store stay
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache .schemathesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: setup
setup: $(READY) ## make .venv with everything in it; the other targets install what they need by themselves

$(READY): pyproject.toml constraints.txt | $(BIN)/pip
	@$(BIN)/python scripts/install.py dev
	@touch $@

$(VENV)/.ready-pipeline: pyproject.toml constraints.txt | $(BIN)/pip
	@$(BIN)/python scripts/install.py pipeline
	@touch $@

$(BIN)/pip:
	@set -eu; \
	python=; \
	for candidate in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
		if command -v "$$candidate" >/dev/null 2>&1 && "$$candidate" -c "$(FITS)" 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "stillmotion needs Python 3.11, 3.12 or 3.13, and $(or $(PYTHON),the PATH) has none. Install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; \
		exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$$python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; \
	fi; \
	"$$python" -m venv --clear $(VENV)
