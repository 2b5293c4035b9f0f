# Two commands matter: `make demo` runs the flywheel on examples/drone-router, `make test` is CI.
# Both make .venv first. Paths are relative, so that a checkout may lie under a name with a space in it,
# and tools run as modules of .venv's Python, because scripts in .venv/bin carry the path they were made at.
SHELL := /bin/sh
PY := .venv/bin/python

# The first Python that is new enough. Name another one: make demo PYTHON=/path/to/python3.12
ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python $(PY); do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
endif

# Packages named `tools` or `agent` on these paths would take the place of ours.
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help env demo test lint types clients bridge clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-6s %s\n", $$1, $$2}' Makefile

env: ## make or mend .venv; nothing to do, and no network needed, when it is up to date
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "bakehouse needs Python 3.11 or newer; '$(if $(PYTHON),$(PYTHON),python3)' is not one:" \
	    "$$("$(if $(PYTHON),$(PYTHON),python3)" --version 2>&1 | head -1)" >&2; \
	  echo "install one, or name it: make $(firstword $(MAKECMDGOALS) env) PYTHON=/path/to/python3.12" >&2; \
	  exit 1; }
	@"$(PYTHON)" -P .ci/environment.py

demo: env ## run the flywheel on examples/drone-router, from recipe to committed decision
	@$(PY) -P examples/drone-router/demo.py

test: lint types ## ruff, mypy --strict and pytest: what CI runs
	@echo "== pytest, one process a core"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile

lint: env ## ruff
	@echo "== ruff"
	@$(PY) -m ruff check --no-cache .
	@$(PY) -m ruff format --check .

types: env ## mypy --strict
	@echo "== mypy --strict (a minute the first time)"
	@$(PY) -m mypy

bridge: env ## convert, train and merge tiny models with real Megatron-Bridge, on the CPU
	@$(PY) -P .ci/bridge.py
	@$(PY) -m pytest -m bridge tests/bridge

clients: env ## try the MCP server with clients that others wrote, Claude Code among them
	@$(PY) -P tests/clients/run.py

clean: ## remove the environment and caches of this checkout
	rm -rf .venv .cache/bridge .cache/clients .mypy_cache .pytest_cache .ruff_cache .hypothesis
