.DEFAULT_GOAL := help
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS := $(VENV)-docs/bin
# A worker computes on one thread (tests/conftest.py) and needs about 1.5 GB.
WORKERS ?= -n logical --maxprocesses 8 --dist loadfile

.PHONY: help install demo test test-slow style quality docs bench bench-gpu

help:  ## Say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -e ".[dev]"
	touch $(STAMP)

install: $(STAMP)  ## Create the virtual environment and install the package with its development tools

demo: $(STAMP)  ## Run the main job on embedded data, twice; prints the results side by side and where the reports are
	$(BIN)/pdiff demo --out runs/demo

test: $(STAMP)  ## Run the fast tests on all cores; TESTS="PATH…" for a part
	$(BIN)/python -m pytest $(WORKERS) $(TESTS)

test-slow: $(STAMP)  ## Run all tests
	$(BIN)/python -m pytest -m "" $(WORKERS) $(TESTS)

style: $(STAMP)  ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(STAMP)  ## Check lint, format and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

docs: pyproject.toml  ## Build the site into build/site; a broken link or reference fails
	test -x $(DOCS)/python || $(PYTHON) -m venv $(VENV)-docs
	$(DOCS)/pip install --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(DOCS)/mkdocs build --strict

bench: $(STAMP)  ## Run the benchmarks and write benchmarks/RESULTS.md; BENCH="--images PATH" for ResNet-18 on images
	$(BIN)/python benchmarks/run_all.py $(BENCH)

bench-gpu: $(STAMP)  ## Measure what an accelerator is worth and write benchmarks/RESULTS_GPU.md; BENCH="--rows zoo" for a part
	$(BIN)/python benchmarks/gpu.py $(BENCH)
