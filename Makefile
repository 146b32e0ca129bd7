# `make demo` trains, prunes and decodes an example; `make test` runs all checks. Both set up the environment first, are
# idempotent, and resume after an interruption.

SHELL := /bin/bash
# The environment of the stack that STACK=reference|current selects, by default the one for this machine.
export STACK
PYTHON_BIN = $(shell STACK='$(STACK)' tools/make_env.sh --folder)/bin
# The stacks that `make test` tests, by default all that this machine can run.
STACKS ?= $(shell STACK='$(STACK)' tools/make_env.sh --stacks)
ENCODER ?= emformer
# Tests run one process per core, with one thread each: threads that spin while they wait slow down shared cores.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: help env demo bench gpu-check test unit-tests lint format docs lock clean

help:
	@echo "make demo     run the recipe on the embedded corpus: features, dense training, mask search, pathways, report"
	@echo "make test     run ruff and mypy, build the documentation, and run all tests, on every stack that this machine can"
	@echo "              run; STACKS=\"reference current\" selects stacks"
	@echo "make lint     run ruff and mypy"
	@echo "make format   format the code and fix what ruff can fix"
	@echo "make docs     build the documentation in site/; fails on broken links"
	@echo "make bench    run the benchmarks and update their tables in benchmarks/; needs an otherwise idle machine"
	@echo "make gpu-check  check the GPU: tests on CUDA, RNN-T loss, trainings in float16 and bfloat16, decoding; 8 minutes"
	@echo "make env      create or update the environment, .venv or .venv-current; STACK=reference|current selects the stack"
	@echo "make lock     update requirements.txt and requirements-current.txt from their .in files"
	@echo "make clean    remove the demo's data and experiments, caches and builds; keep environments and everything else"

env:
	@tools/make_env.sh

demo: env
	@egs/mls/ASR/run.sh --demo 1 --encoder-type $(ENCODER)

test:
	@stacks="$(strip $(STACKS))"; \
	[ -n "$$stacks" ] || { echo "error: no stack to test: STACKS=\"reference current\" or one of them selects it" >&2; exit 2; }; \
	$(MAKE) --no-print-directory docs STACK=$${stacks%% *} && for stack in $$stacks; do \
	  $(MAKE) --no-print-directory lint unit-tests STACK=$$stack || exit; \
	done

unit-tests: env
	@tools/install_browser.sh "$(PYTHON_BIN)/python"
	@. tools/cpu_env.sh && $(TEST_ENV) "$(PYTHON_BIN)/python" -m pytest -n auto

lint: env
	"$(PYTHON_BIN)/ruff" check .
	"$(PYTHON_BIN)/ruff" format --check .
	"$(PYTHON_BIN)/mypy"

format: env
	"$(PYTHON_BIN)/ruff" check --fix .
	"$(PYTHON_BIN)/ruff" format .

docs: env
	NO_MKDOCS_2_WARNING=1 "$(PYTHON_BIN)/mkdocs" build --strict

bench: env
	@. tools/cpu_env.sh && \
	  OMP_NUM_THREADS=1 "$(PYTHON_BIN)/python" benchmarks/training.py --rounds 5 --write 1 && \
	  OMP_NUM_THREADS=1 "$(PYTHON_BIN)/python" benchmarks/decoding.py --seconds 10 --rounds 3 --write 1

gpu-check: env
	@PYTHON="$(PYTHON_BIN)/python" tools/gpu_check.sh

lock:
	@tools/lock.sh

clean:
	rm -rf egs/mls/ASR/{data/demo,download/mini,exp/demo} .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist site *.egg-info
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +
