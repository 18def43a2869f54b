# The verbs of the project, the same for people and CI. `make demo` and `make test` need nothing but Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test lint bench protocols sequence docs clean

help:
	@echo "make setup   create .venv and install Palate with its development tools"
	@echo "make demo    the main job on the bundled data: clean, train, evaluate, recommend; report in palate-demo/"
	@echo "make test    all tests"
	@echo "make lint    formatting, lint and types"
	@echo "make bench   latency of one person, throughput of meta-training, as ratios against peers"
	@echo "make protocols DATA=folder   every learner on public few-shot protocols; writes docs/protocols.md"
	@echo "make sequence DATA=folder    the large model on public sequences, three seeds; writes docs/sequential.md"
	@echo "make docs    write docs/cli.md from the command line's own help"

setup: $(VENV)/.ready

# torch comes first and alone: 2.13.0 exactly, so that nothing else pulls another build of it in.
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/palate demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/recommend_latency.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/adapt_latency.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/meta_throughput.py

protocols: setup
	$(BIN)/palate bench meta --protocol all --data $(DATA) --page docs/protocols.md

sequence: setup
	$(BIN)/palate bench sequence --data $(DATA) --seeds 3 --workers 2 --page docs/sequential.md

docs: setup
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) palate-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
