# Everything here runs on a machine with nothing but make and Python >= 3.11 (with venv and pip): no compiler.
#
#   make demo      train on handwritten digits and draw some predictions
#   make test      the tests, without the slow ones         make test-all   with them
#   make check     format, lint, types, direction of imports
#   make bench     measure, beside other frameworks; PEERS=0 measures Cermet alone
#   make docs      build the documentation into site/
#   make clean     remove what the targets above made, virtual environments included

.DEFAULT_GOAL := help
.SUFFIXES:

PYTHON_TEST := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
# The newest of the usual names that runs and is new enough. `make PYTHON=/path/to/python ...` chooses another.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
    if $$p -c '$(PYTHON_TEST)' >/dev/null 2>&1; then echo $$p; break; fi; done)

VENV := .venv
VENV_PEERS := .venv-peers
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
STAMP_DOCS := $(VENV)/.installed-docs
STAMP_PEERS := $(VENV_PEERS)/.installed

TEST_WORKERS ?= 2
TEST_ARGS ?=
BENCH_ARGS ?=
PEERS ?= 1
# What to measure beside, and where pip finds it if not where it looks by default (on Linux the default build of torch is large;
# PEERS_PIP="--index-url ..." can name an index with the CPU build).
PEERS_PACKAGES ?= torch==2.13.0 numpy jax tensorflow-cpu
PEERS_PIP ?=

PIP := -m pip --disable-pip-version-check --no-input

# make_venv(folder): make the virtual environment unless it is there and has a working pip.
define make_venv
	@if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
	    if ! "$(PYTHON)" -c '$(PYTHON_TEST)' >/dev/null 2>&1; then \
	        echo "Cermet needs Python 3.11 or newer with the modules venv and ensurepip, and found none." >&2; \
	        echo "Install one (on Debian and Ubuntu: the packages python3 and python3-venv), or name one:" >&2; \
	        echo "    make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; \
	        exit 1; \
	    fi; \
	    echo "making the virtual environment $(1) with $(PYTHON)"; \
	    "$(PYTHON)" -m venv --clear $(1); \
	fi
endef

.PHONY: help demo test test-all check format bench peers docs clean

help:
	@sed -n 's/^#   make/  make/p' Makefile

# A virtual environment without the stamp, or one older than pyproject.toml, gets the install run.
$(STAMP): pyproject.toml
	$(call make_venv,$(VENV))
	@$(RUN) $(PIP) install --quiet --editable '.[dev,demo]'
	@touch $@

$(STAMP_DOCS): $(STAMP)
	@$(RUN) $(PIP) install --quiet --editable '.[docs]'
	@touch $@

$(STAMP_PEERS): Makefile
	$(call make_venv,$(VENV_PEERS))
	@$(VENV_PEERS)/bin/python $(PIP) install --quiet $(PEERS_PIP) $(PEERS_PACKAGES)
	@touch $@

demo: $(STAMP)
	@$(RUN) examples/digits.py
	@echo "picture: out/digits.png"
	@echo "weights: out/digits.safetensors"

test: $(STAMP)
	@$(RUN) -m pytest -n $(TEST_WORKERS) -m "not slow" $(TEST_ARGS)

test-all: $(STAMP)
	@$(RUN) -m pytest -n $(TEST_WORKERS) $(TEST_ARGS)

check: $(STAMP)
	@$(RUN) -m ruff format --check
	@$(RUN) -m ruff check
	@$(RUN) -m mypy
	@$(RUN) -m pytest -q tests/test_imports.py -k "not process"

format: $(STAMP)
	@$(RUN) -m ruff format
	@$(RUN) -m ruff check --fix

peers: $(STAMP_PEERS)

ifeq ($(PEERS),1)
bench: $(STAMP_PEERS)
endif
bench: $(STAMP)
	@$(RUN) -m bench $(if $(filter 1,$(PEERS)),,--peers=) $(BENCH_ARGS)

docs: $(STAMP_DOCS)
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet
	@echo "documentation: site/index.html"

clean:
	rm -rf $(VENV) $(VENV_PEERS) out site build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
