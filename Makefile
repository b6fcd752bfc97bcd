# `make demo` and `make test` are all a newcomer needs; they take Python 3.11 or newer, pip and make.
#
#   PYTHON=python3.13   the interpreter that the environment is made with
#   VENV=.venv          where the environment is
#   MODEL=model.onnx    what `make demo` optimizes

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed
PEERS := $(VENV)/.installed-peers
MODEL ?= fixtures/bert_ts17.onnx
MODELS ?= $(wildcard fixtures/*.onnx)

.PHONY: help demo test lint types format bench lock clean

help:
	@echo 'make demo    optimize $(MODEL) and print what happened'
	@echo 'make test    run every test'
	@echo 'make lint    style;  make types: types;  make format: put the style right'
	@echo 'make bench   compare with other optimizers (MODELS="a.onnx b.onnx")'
	@echo 'make lock    resolve constraints.txt anew'

demo: $(INSTALLED)
	@mkdir -p out
	$(BIN)/optimize $(MODEL) -o out/$(notdir $(MODEL))

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)
	$(BIN)/mypy
	$(BIN)/mypy tools/benchmark.py tools/benchmark_peer.py tools/benchmark_judge.py

bench: $(PEERS)
	@mkdir -p out
	$(BIN)/python tools/benchmark.py $(MODELS) --json out/benchmark.json --markdown out/benchmark.md

# The environment is made once, and again when what it is made from changes.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.11' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@# As pip does with what it copies; a source tree has no bytecode where Python is told not to write any.
	$(BIN)/python -m compileall -q src passes
	@touch $@

$(PEERS): $(INSTALLED)
	$(PIP) install --quiet -c constraints.txt -e '.[dev,peers]'
	@touch $@

# One file for every supported Python: uv resolves for all of them at once and writes markers.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip --disable-pip-version-check install --quiet uv
	build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev --extra peers \
		--no-annotate --no-emit-index-url --custom-compile-command 'make lock' \
		--output-file constraints.txt pyproject.toml

clean:
	rm -rf build out $(VENV)
