# What a newcomer types: `make demo` for a trained, pruned and decoded result, `make test` for the checks.
# Both set everything up first, are safe to repeat, and go on where an interrupted one stopped.

SHELL := /bin/bash
PYTHON_BIN := .venv/bin
ENCODER ?= emformer
# Tests run one process per core, each with one thread: spinning barriers of several threads slow shared cores down.
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: help env demo bench test lint format lock clean

help:
	@echo "make demo     set up, then corpus, features, dense training, mask search, pathways, decoding, report"
	@echo "make test     set up, then ruff, mypy and the tests"
	@echo "make bench    measure training steps and decoding, and renew the tables in benchmarks/; on a quiet machine"
	@echo "make env      set up .venv only"
	@echo "make lint     ruff and mypy"
	@echo "make format   let ruff format the code"
	@echo "make lock     renew requirements.txt from requirements.in"
	@echo "make clean    remove what the demo and the tests made; .venv and the kaldifeat wheel stay"

env:
	@tools/make_env.sh

demo: env
	@egs/mls/ASR/run.sh --demo 1 --encoder-type $(ENCODER)

bench: env
	@. tools/cpu_env.sh && \
	  OMP_NUM_THREADS=2 $(PYTHON_BIN)/python benchmarks/training.py --rounds 9 --write 1 && \
	  for model in zipformer-5M zipformer-20M emformer-5M; do \
	    OMP_NUM_THREADS=1 $(PYTHON_BIN)/python benchmarks/decoding.py --model $$model --seconds 10 --rounds 3 --write 1 || exit; \
	  done

test: lint
	@. tools/cpu_env.sh && $(TEST_ENV) $(PYTHON_BIN)/python -m pytest -n auto

lint: env
	$(PYTHON_BIN)/ruff check .
	$(PYTHON_BIN)/ruff format --check .
	$(PYTHON_BIN)/mypy

format: env
	$(PYTHON_BIN)/ruff check --fix .
	$(PYTHON_BIN)/ruff format .

lock:
	@tools/lock.sh

clean:
	rm -rf egs/mls/ASR/{data,download,exp} .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
