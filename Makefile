# The two commands of the README, and what keeps the house clean. Everything here is also a plain command of
# the installed package; `make` only adds the environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
# The CPU build is pinned and installed first and alone: asked for by other packages, torch brings gigabytes of CUDA.
TORCH ?= torch==2.13.0

.PHONY: demo test check mutants docs clean

demo: .venv/installed
	@$(BIN)/selfcorrect train demo --out runs/demo

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mutants: .venv/installed-dev
	$(BIN)/python tests/mutants/run.py

docs: .venv/installed-dev
	$(BIN)/python -m selfcorrect.reference > docs/configuration.md

.venv/torch:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	@touch $@

.venv/installed: .venv/torch pyproject.toml
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
