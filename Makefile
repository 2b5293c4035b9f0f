# Two commands matter: `make demo` runs the flywheel on examples/drone-router, `make test` is CI.
# Every path below is relative and unquoted-safe, so a checkout may lie in a folder with a space in its name.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# The stamp carries what the environment was made from: change either file and it is made anew.
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint types check clean

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

$(STAMP): pyproject.toml constraints.txt
	@echo "== making $(VENV) (a few minutes the first time: torch is large)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "bakehouse needs Python 3.11 or newer; set PYTHON=... and remove $(VENV)"; exit 1; }
	$(PY) -m pip install --disable-pip-version-check --progress-bar on -q --upgrade-strategy only-if-needed "pip>=25.1"
	$(PY) -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt -e . --group dev
	@touch $(STAMP)

demo: $(STAMP) ## run the flywheel on examples/drone-router, from recipe to committed decision
	@$(PY) -P examples/drone-router/demo.py

test: $(STAMP) lint types ## ruff, mypy --strict and pytest: what CI runs
	$(PY) -m pytest

lint: $(STAMP) ## ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP) ## mypy --strict
	$(PY) -m mypy

clean: ## remove the environment and caches of this checkout
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
