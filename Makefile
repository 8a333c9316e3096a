# Makefile: the commands of the project, the same here and in CI. Each makes what it needs; twice is quick.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
export PATH := $(CURDIR)/$(BIN):$(PATH)
SOURCES := pyproject.toml CMakeLists.txt README.md LICENSE $(wildcard src/c/* src/rmsprop_native/*.p*)
PY_FILES := src tests examples bench

.PHONY: help demo test test-peers bench bench-quick lint format wheel clean
help: ## these lines
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

demo: $(VENV)/demo.group $(VENV)/installed ## train a network on handwritten digits
	$(BIN)/python examples/digits.py

test: $(VENV)/test.group $(VENV)/demo.group $(VENV)/installed ## run the tests
	$(BIN)/python -m pytest

test-peers: $(VENV)/peers.group $(VENV)/demo.group $(VENV)/installed ## train beside the real torch, Keras, optax, SB3
	KERAS_BACKEND=torch $(BIN)/python -m pytest tests/peers

# One core, then two; each family of peers in a process of its own; report.py merges the saved JSON.
FAMILIES = numpy numexpr numba torch optax
bench-quick: FAMILIES = numpy numba torch optax
BENCH = $(BIN)/python -m pytest -q -W ignore -o python_files='bench_*.py' --benchmark-disable-gc --benchmark-columns=rounds
bench bench-quick: $(VENV)/bench.group $(VENV)/build.group $(VENV)/installed ## measure: limits, peers, overhead; make bench-quick in 3 minutes
	rm -rf build/bench/$@ && mkdir -p build/bench/$@
	for threads in 1 2; do \
	  export RMSP_BENCH_THREADS=$$threads $(if $(filter bench-quick,$@),RMSP_BENCH_QUICK=1); \
	  for family in $(FAMILIES); do \
	    RMSP_BENCH_FAMILY=$$family $(BENCH) bench/bench_peers.py --benchmark-json=build/bench/$@/$$threads-$$family.json || exit 1; \
	  done; \
	  $(BENCH) bench/bench_overhead.py bench/bench_limits.py bench/bench_special.py --benchmark-json=build/bench/$@/$$threads-ours.json || exit 1; \
	done
	$(BIN)/python bench/report.py $$(ls build/bench/$@/*-numpy.json) $$(ls build/bench/$@/*.json | grep -v numpy) $(if $(filter bench,$@),--page docs/performance.md)

lint: $(VENV)/lint.group $(VENV)/demo.group $(VENV)/installed ## check style and types
	$(BIN)/ruff check $(PY_FILES)
	$(BIN)/ruff format --check $(PY_FILES)
	$(BIN)/mypy
	$(BIN)/cython-lint src
	$(BIN)/clang-format --dry-run --Werror src/c/*.[ch]

format: $(VENV)/lint.group ## write code the way lint wants it
	$(BIN)/ruff check --fix $(PY_FILES)
	$(BIN)/ruff format $(PY_FILES)
	$(BIN)/clang-format -i src/c/*.[ch]

wheel: $(VENV)/build.group ## build a wheel into dist/
	$(PIP) wheel --no-deps --wheel-dir dist .

clean: ## remove what was built
	rm -rf $(VENV) build dist .*_cache

$(VENV)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade "pip>=25.1"
	@touch $@

# The dependency groups of pyproject.toml.
$(VENV)/%.group: pyproject.toml | $(VENV)/pip
	$(PIP) install --group $*
	@touch $@

# Without build isolation, so that what did not change is not compiled again.
$(VENV)/installed: $(SOURCES) $(VENV)/build.group
	$(PIP) install --no-build-isolation --config-settings=build-dir=build/venv .
	@touch $@
