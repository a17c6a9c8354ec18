# On a fresh machine, `make demo` and `make test` do everything: they set .venv up first.
# The pinned torch is the CUDA build where the package index offers that, else the CPU build.
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test test-slow lint types check bench pretrain-tiny clean

demo: .venv/ready  ## the embedded default: offline, on a CPU, in about a minute
	$(BIN)/sparta-bench

test: .venv/ready  ## the tests: minutes, offline
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/ready  ## the rest: every shipped YAML runs, kills and resumes
	$(BIN)/python -m pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

check: lint types test test-slow  ## everything that continuous integration asks

bench: .venv/ready  ## step time, FLOPs and memory of all methods on this machine
	$(BIN)/sparta-bench bench

pretrain-tiny: .venv/ready  ## make the embedded models anew
	$(BIN)/python scripts/pretrain_tiny.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache dist build
