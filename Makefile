# make demo | test | bench-cpu | test-cuda | bench-cuda: each makes the environment first if there is none. Nothing else
# is needed but python3, and a GPU for the last two.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
COMPILERS := $(strip $(foreach name,c++ g++ clang++,$(shell command -v $(name) 2>/dev/null)))
# Without a C++ compiler on PATH, the one in a wheel.
COMMA := ,
EXTRAS := dev$(if $(COMPILERS),,$(COMMA)toolchain)
DEMO := build/demo
# Test files run side by side.
WORKERS ?= 2
# Kernels built ahead on another machine (tests/device/prepare.py); without, they are built here.
PREPARED ?= build/device

.PHONY: demo test bench-cpu test-cuda bench-cuda environment toolchain

demo: $(STAMP)
	$(BIN)/moec compile examples/deepseek_small --random-weights 0 --target cpu --budget 30s --force -o $(DEMO)
	$(BIN)/moec run $(DEMO) --tokens 1,2,3 --max-new 32
	$(BIN)/moec bench $(DEMO)

test: toolchain
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

# The first time it builds llama.cpp and two models, about 20 GB. SECTIONS="moe lite" runs some of it.
bench-cpu: $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[bench,llama]'
	$(BIN)/python -m tests.benchmarks.run $(SECTIONS)

test-cuda: $(STAMP)
	$(BIN)/pytest tests/device

bench-cuda: $(STAMP)
	test -e $(PREPARED)/index.json || $(BIN)/python -m tests.device.prepare $(PREPARED)
	$(BIN)/python -m tests.benchmarks.cuda $(PREPARED) $(SECTIONS)

environment: toolchain

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or later: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]'
	touch $@

# What the ascend target compiles with, 700 MB in the user's data folder; done at once where it is there. Where it
# cannot be had, the tests that need it are skipped and say so; where CI is set, that is a failure.
toolchain: $(STAMP)
	$(BIN)/moec toolchain install ascend || test -z "$$CI"
