# What each target needs it makes first, in .venv; a second run starts at once. Needs Python 3.11+ and make.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMPS := $(VENV)/stamps
EXTRAS ?= all,dev
ARGS ?=

.PHONY: help setup demo test tflite-env check bench docs format clean

help:
	@echo "make demo    the whole line on this machine, in under three minutes (ARGS='--keep demo-data' keeps it)"
	@echo "make test    the tests (ARGS='-k words' chooses some)"
	@echo "make check   ruff, mypy, import directions, fresh docs"
	@echo "make bench   measure, and write the tables in the docs"
	@echo "make setup   the full environment in $(VENV)"
	@echo "make docs    write the generated pages again"
	@echo "make format  let ruff format the code"
	@echo "make clean   remove $(VENV) and the caches"

setup: $(STAMPS)/full

demo: $(STAMPS)/demo
	$(BIN)/edge demo $(ARGS)

test: $(STAMPS)/full tflite-env
	$(BIN)/python -m pytest $(ARGS)

# The runtime of old boards lives in an environment of its own; where it cannot be made, its tests say so and skip.
tflite-env: $(STAMPS)/tflite

$(STAMPS)/tflite: converters/environments/__init__.py | $(STAMPS)/full
	@if python=$$(EDGE_ENVIRONMENTS=$(VENV)/environments $(BIN)/python -m converters.environments tflite-runtime) && \
	    "$$python" -m pip --disable-pip-version-check install -q pytest pytest-timeout hypothesis; \
	then touch $@; else echo "tflite-runtime: no environment, its tests will be skipped"; fi

check: $(STAMPS)/full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/docs_check.py

bench: $(STAMPS)/full
	$(BIN)/python -m bench.run $(ARGS)

docs: $(STAMPS)/full
	$(BIN)/python tools/docs_check.py --write

format: $(STAMPS)/full
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build *.egg-info

$(STAMPS)/venv:
	@python=$$(sh tools/find-python.sh) && echo "$$python -m venv $(VENV)" && "$$python" -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# torch alone first: its CPU build is large, and a broken download should not cost the rest.
$(STAMPS)/torch: | $(STAMPS)/venv
	$(PIP) install torch==2.13.0
	@touch $@

$(STAMPS)/demo: pyproject.toml | $(STAMPS)/torch
	$(PIP) install -e '.[demo]'
	@touch $@

$(STAMPS)/full: pyproject.toml Makefile | $(STAMPS)/torch
	$(PIP) install -e '.[$(EXTRAS)]'
	@touch $(STAMPS)/demo $@
