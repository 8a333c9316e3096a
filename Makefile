# Makefile: the commands of the project, the same here and in CI. Each makes what it needs; twice is quick.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
export PATH := $(CURDIR)/$(BIN):$(PATH)
SOURCES := pyproject.toml CMakeLists.txt README.md LICENSE $(wildcard src/c/* src/rmsprop_native/*.p* src/rmsprop_native/interop/*.py)
PY_FILES := src tests examples bench docs/conf.py
PAGES := README.md CONTRIBUTING.md CHANGELOG.md docs

# Without MAKEFLAGS: ninja would look for the jobs of make, whose files it does not have.
BUILD_C = MAKEFLAGS= $(BIN)/cmake --build

.PHONY: help environment demo test test-c test-peers test-mpi sanitize sanitize-quick freethreaded analyze cross memcheck fuzz clang musl coverage mutation hardening bench bench-quick docs vectors lint format wheel clean
help: ## these lines
	@grep -E '^[a-z -]+:.*## ' Makefile | sed -E 's/^([a-z -]+):.*## /\1\t/' | expand -t 20

demo: $(VENV)/demo.group $(VENV)/installed ## train a network on handwritten digits
	$(BIN)/python examples/digits.py

test: $(VENV)/test.group $(VENV)/demo.group $(VENV)/recordings $(VENV)/installed ## run the tests
	@echo "About 9000 tests, four to ten minutes on two cores:"
	$(BIN)/python -m pytest

test-c: $(VENV)/build.group ## run the tests of the C library, which need no Python
	$(BIN)/cmake -S . -B build/c -G Ninja -DRMSPROP_TESTS=ON
	$(BUILD_C) build/c
	$(BIN)/ctest --test-dir build/c --output-on-failure

test-peers: $(VENV)/peers.group $(VENV)/demo.group $(VENV)/installed ## train beside the real torch, Keras, PennyLane and others
	KERAS_BACKEND=torch $(BIN)/python -m pytest tests/peers

# MPI is the wheel mpich, in the environment: nothing of the system.
test-mpi: $(VENV)/mpi.group $(VENV)/installed ## train in 1 to 4 processes under mpiexec
	$(BIN)/python -m pytest tests/mpi

# Debug builds of the package and the C tests, whose asserts are active, once a sanitizer. Python itself is built without:
# the sanitizer's library is loaded before it, and what it leaves allocated at its end says nothing, so that leaks are
# looked for in the C tests. The output of a test is not captured, since a report comes from a process that ends with it.
SANITIZED = build/sanitize
HARDENING = build/hardening
FLAGS_address = address,undefined
FLAGS_thread = thread
LIBRARY = $(shell $(CC) -print-file-name=$(1))
WITH_address = ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  LD_PRELOAD="$(call LIBRARY,libasan.so) $(call LIBRARY,libstdc++.so)"
WITH_thread = TSAN_OPTIONS=die_after_fork=0 LD_PRELOAD=$(call LIBRARY,libtsan.so)
PYTEST_WITH = $(WITH_$(1)) PYTHONPATH=$(CURDIR)/$(SANITIZED)/$(1)/site $(BIN)/python -m pytest -q --capture=sys \
  --junitxml=$(HARDENING)/$@-$(2).xml
CTEST_WITH = $(BIN)/ctest --test-dir $(SANITIZED)/$(1)/build --output-on-failure --output-junit $(CURDIR)/$(HARDENING)/$@-$(1)-c.xml
# These read the instructions of the kernels, which the compiler vectorises only in an optimised build.
UNOPTIMISED = $(addprefix --deselect tests/test_kernels.py::test_every_,loop_is_vectorised array_is_read_once)
# A limit to the memory of the process ends the sanitizer itself.
UNLIMITED = --deselect tests/peers/test_adversarial_torch.py::test_memory_for_large_buffers_that_runs_out
QUICK_FILES = bind leaves plan step state strided ufuncs adversarial_arrays adversarial_containers adversarial_memory
sanitize-quick: QUICK = $(QUICK_FILES:%=tests/test_%.py)
sanitize-quick: WITH_TORCH = $(filter-out %_distributed.py %_offload.py,$(wildcard tests/peers/test_*torch*.py))
sanitize: ## C tests and all tests under the address, undefined-behaviour and thread sanitizers
sanitize-quick: ## the same for the C tests and what is nearest to memory and threads
# torch itself is no sanitized build, so that its threads are not watched.
WITH_TORCH = $(wildcard tests/peers/test_*torch*.py)
sanitize sanitize-quick: $(VENV)/test.group $(VENV)/demo.group $(VENV)/recordings $(VENV)/peers.group $(SANITIZED)/address/built $(SANITIZED)/thread/built
	mkdir -p $(HARDENING)
	ASAN_OPTIONS=detect_leaks=1 $(call CTEST_WITH,address)
	TSAN_OPTIONS=die_after_fork=0 $(call CTEST_WITH,thread)
	$(call PYTEST_WITH,address,address) $(UNOPTIMISED) $(QUICK)
	$(call PYTEST_WITH,address,torch) $(UNLIMITED) $(WITH_TORCH)
	$(call PYTEST_WITH,thread,thread) -m threads

# What gcc finds along all paths of the C library, and that it is standard C99 without each optional feature of a
# system. gcc 12 takes an array that memcpy fills in a loop for uninitialised; valgrind and the sanitizers watch that.
C99 = -std=c99 -pedantic -Wall -Wextra -Werror -Isrc/c -DRMSP_ISA=baseline
ALL_FEATURES = -DRMSP_HAVE_PTHREADS -DRMSP_HAVE_AFFINITY -DRMSP_HAVE_SIGMASK -DRMSP_HAVE_ATFORK
FEATURES = -URMSP_HAVE_PTHREADS -DRMSP_NO_FENV -DRMSP_HAVE_PTHREADS "-DRMSP_HAVE_PTHREADS -DRMSP_HAVE_AFFINITY" \
  "-DRMSP_HAVE_PTHREADS -DRMSP_HAVE_SIGMASK" "-DRMSP_HAVE_PTHREADS -DRMSP_HAVE_ATFORK"
analyze: ## static analysis of the C library by gcc, and builds without each optional feature
	for features in $(FEATURES); do \
	  for file in src/c/*.c; do $(CC) $(C99) $$features -fsyntax-only $$file || exit 1; done; \
	done
	for file in src/c/*.c; do \
	  gcc $(C99) -O1 -fanalyzer -Wno-analyzer-use-of-uninitialized-value -c $$file -o /dev/null || exit 1; \
	done

# One that is not there cannot be had by pip. Its packages are taken as wheels: NumPy takes minutes to compile.
FREETHREADED ?= $(shell command -v python3.14t || command -v python3.13t)
WITHOUT_GIL = build/freethreaded
# Tests of the public API, of which those not marked thread_unsafe run in four threads at once.
IN_THREADS = $(patsubst %,tests/test_%.py,functional optimizer options overrides plan presets reference runtime shards state step tree vectors)
freethreaded: $(VENV)/build.group ## tests in many threads on a CPython without GIL: FREETHREADED=python3.14t
	@test -n "$(FREETHREADED)" || { echo "make freethreaded: no python3.14t, no python3.13t here; FREETHREADED=... says where one is"; exit 1; }
	$(FREETHREADED) -m venv $(WITHOUT_GIL)
	$(WITHOUT_GIL)/bin/python -m pip --disable-pip-version-check --quiet install --upgrade "pip>=25.1"
	$(WITHOUT_GIL)/bin/python -m pip --disable-pip-version-check --quiet install --only-binary :all: --group freethreaded
	$(WITHOUT_GIL)/bin/python -m pip --disable-pip-version-check --quiet install --no-build-isolation --no-deps \
	  --config-settings=build-dir=$(WITHOUT_GIL)/build .
	$(WITHOUT_GIL)/bin/python -W error -c 'import sys, rmsprop_native.__main__; assert not sys._is_gil_enabled()'
	$(WITHOUT_GIL)/bin/python -m pytest -q -m threads tests/test_threads.py tests/test_adversarial_threads.py $(IN_THREADS)
	$(WITHOUT_GIL)/bin/python -m pytest -q -m "not threads and not slow" --parallel-threads=4 $(IN_THREADS)

# Of Debian: qemu-user, and for each machine gcc-MACHINE-linux-gnu and its libc6-dev-*-cross. QEMU's emulation of a
# process ends when a child is forked beside threads, so that test_threads runs on this machine only. Excess precision
# would change bits: i686 computes with SSE2, s390x as the types say.
# QEMU has no AVX-512; Bochs has, and emulates a whole computer: of Debian bochs, bochsbios, vgabios, isolinux,
# syslinux-common, xorriso, cpio, busybox-static and linux-image-cloud-amd64. test_plan takes minutes there.
MACHINES = avx512 aarch64 sve s390x riscv64 ppc64le i686
COMPILER_avx512 = x86_64
COMPILER_sve = aarch64
COMPILER_ppc64le = powerpc64le
EMULATOR_sve = qemu-aarch64;-cpu;max,sve512=on
EMULATOR_i686 = qemu-i386
C_FLAGS_sve = -march=armv8.2-a+sve
C_FLAGS_i686 = -msse2 -mfpmath=sse
C_FLAGS_s390x = -fexcess-precision=fast
KERNEL ?= $(or $(lastword $(sort $(wildcard /boot/vmlinuz-*))),/boot/vmlinuz-*)
RUN_CROSS = $(BIN)/ctest --test-dir build/cross/$* --output-on-failure -E test_threads --output-junit $(CURDIR)/$(HARDENING)/$*.xml
RUN_CROSS_avx512 = $(BIN)/python tests/emulated.py build/cross/emulated "$(KERNEL)" $(HARDENING)/avx512.xml \
  $$(find build/cross/avx512/tests/c -maxdepth 1 -type f -perm -u+x ! -name test_threads ! -name test_plan)
cross: $(MACHINES:%=cross-%) ## the C tests for AVX-512, AArch64 (NEON, SVE), s390x (big-endian), riscv64, ppc64le and i686, under emulation
cross-%: $(VENV)/build.group
	$(BIN)/cmake -S . -B build/cross/$* -G Ninja -DRMSPROP_TESTS=ON -DRMSPROP_OPENMP=OFF -DCMAKE_SYSTEM_NAME=Linux \
	  -DCMAKE_SYSTEM_PROCESSOR=$(or $(COMPILER_$*),$*) -DCMAKE_C_COMPILER=$(or $(COMPILER_$*),$*)-linux-gnu-gcc -DCMAKE_C_FLAGS="$(C_FLAGS_$*)" \
	  -DCMAKE_EXE_LINKER_FLAGS=-static "-DCMAKE_CROSSCOMPILING_EMULATOR=$(or $(EMULATOR_$*),qemu-$*)"
	$(BUILD_C) build/cross/$*
	$(or $(RUN_CROSS_$*),$(RUN_CROSS))

# Other compilers and C libraries; clang and musl-tools of Debian.
clang musl: C_TESTS = $(BIN)/cmake -S . -B build/$@ -G Ninja -DRMSPROP_TESTS=ON -DRMSPROP_OPENMP=OFF
clang musl: RUN_C_TESTS = $(BUILD_C) build/$@ && \
  $(BIN)/ctest --test-dir build/$@ --output-on-failure --output-junit $(CURDIR)/$(HARDENING)/$@.xml
clang: $(VENV)/build.group ## the C tests built by clang
	for features in $(FEATURES); do \
	  for file in src/c/*.c; do clang $(C99) $$features -fsyntax-only $$file || exit 1; done; \
	done
	$(C_TESTS) -DCMAKE_C_COMPILER=clang
	$(RUN_C_TESTS)

musl: $(VENV)/build.group ## the C tests, linked statically with musl
	$(C_TESTS) -DCMAKE_C_COMPILER=musl-gcc -DCMAKE_EXE_LINKER_FLAGS=-static
	$(RUN_C_TESTS)

# Without test_plan, which takes more than five minutes under valgrind, and test_threads; the sanitizers run both.
memcheck: $(VENV)/build.group ## the C tests under valgrind
	$(BIN)/cmake -S . -B build/memcheck -G Ninja -DRMSPROP_TESTS=ON -DRMSPROP_OPENMP=OFF -DCMAKE_BUILD_TYPE=Debug \
	  "-DCMAKE_CROSSCOMPILING_EMULATOR=valgrind;--quiet;--error-exitcode=1;--leak-check=full" \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=$(shell uname -m)
	$(BUILD_C) build/memcheck
	$(BIN)/ctest --test-dir build/memcheck --output-on-failure -E "test_threads|test_plan" \
	  --output-junit $(CURDIR)/$(HARDENING)/valgrind.xml

# libFuzzer, which looks for inputs that reach new code, under the sanitizers; clang and libclang-rt-dev of Debian. The
# inputs found are kept in build/fuzz, and go on from there.
FUZZ_SECONDS = 60
FUZZ = -max_total_time=$(FUZZ_SECONDS) -len_control=0 -max_len=256 -print_final_stats=1 -artifact_prefix=build/fuzz/
fuzz: $(VENV)/build.group $(VENV)/hardening.group $(VENV)/installed ## fuzz bind, step, the ufunc loop and load, a minute each
	$(BIN)/cmake -S . -B build/fuzz -G Ninja -DRMSPROP_TESTS=ON -DRMSPROP_FUZZ=ON -DRMSPROP_OPENMP=OFF \
	  -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=Debug -DRMSPROP_SANITIZE=address,undefined,fuzzer-no-link
	$(BUILD_C) build/fuzz
	mkdir -p $(HARDENING) build/fuzz/corpus/bind build/fuzz/corpus/step build/fuzz/corpus/ufunc build/fuzz/corpus/load
	for name in bind step ufunc; do \
	  build/fuzz/tests/c/fuzz_$$name $(FUZZ) build/fuzz/corpus/$$name >$(HARDENING)/fuzz_$$name.log 2>&1 || \
	    { tail -n 50 $(HARDENING)/fuzz_$$name.log; exit 1; }; \
	done
	$(BIN)/python tests/fuzz_load.py $(FUZZ) build/fuzz/corpus/load >$(HARDENING)/fuzz_load.log 2>&1 || \
	  { tail -n 50 $(HARDENING)/fuzz_load.log; exit 1; }

# Lines and branches of Python, by the tests of each file and the attacks on states, and of C, by the C tests and those
# of storage, in a debug build. Other tests look at where memory is allocated, at references or at compiled code, which a
# tracer or a debug build changes. Those of interop, with their frameworks, are not counted.
COVERAGE = build/coverage
# test_more_members writes 65,536 arrays, which takes minutes with a tracer, and reaches nothing of its own.
UNTRACED_TESTS = not memory_that_runs_out and not more_members_than
UNTRACED = adversarial|kernels|architecture|examples|storage|strided|dtype|bind|step|threads
TRACED = $(shell ls tests/test_*.py | grep -vE "$(UNTRACED)") tests/test_storage.py tests/test_adversarial_state.py \
  tests/test_adversarial_checkpoint.py tests/peers/test_torch_tensors.py \
  tests/peers/test_interop_optax.py
# The conditions of a template are constants in each of its instances, where a branch of theirs is never taken: there
# only lines are counted.
GCOVR = $(BIN)/gcovr --root . --filter src/c/ --merge-lines --print-summary $(COVERAGE)/build/CMakeFiles/rmsp*.dir
coverage: $(VENV)/hardening.group $(VENV)/peers.group $(VENV)/installed ## lines and branches that the tests reach: of Python at least 98 %, of C 95 %
	rm -rf $(COVERAGE) && mkdir -p $(COVERAGE) $(HARDENING)
	RMSP_EXAMPLES=30 $(BIN)/python -m coverage run -m pytest -q -k "$(UNTRACED_TESTS)" $(TRACED)
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report --show-missing --skip-covered
	$(BIN)/python -m coverage json -q -o $(HARDENING)/coverage_python.json
	$(PIP) install --no-build-isolation --no-deps --upgrade --target $(COVERAGE)/site --config-settings=build-dir=$(COVERAGE)/build \
	  --config-settings=cmake.build-type=Debug --config-settings=cmake.define.RMSPROP_TESTS=ON \
	  "--config-settings=cmake.define.CMAKE_C_FLAGS=--coverage -fprofile-update=atomic -DNDEBUG" .
	$(BIN)/ctest --test-dir $(COVERAGE)/build --output-on-failure
	PYTHONPATH=$(COVERAGE)/site $(BIN)/python -m pytest -q tests/test_storage.py
	$(GCOVR) --fail-under-line 95 --json-summary $(HARDENING)/coverage_line.json
	$(GCOVR) --fail-under-branch 95 --exclude '.*\.inc\.h' --json-summary $(HARDENING)/coverage_branch.json

# One operator or number changed at a time, and the tests must fail; a fifth of the mutants, and all with EVERY=1.
EVERY = 5
mutation: $(VENV)/test.group $(VENV)/installed ## mutants of the formula, the transaction and the checks, one in five: the tests must kill each
	mkdir -p $(HARDENING)
	$(BIN)/python tests/mutation.py build/mutation --every $(EVERY) --log $(HARDENING)/mutation.log

# The long forms and the tools, two at a time, those that take longest first. Each leaves its results in a file, of which
# tests/reliability.py makes the table of the page.
LONG = random machine attacks forks large leaks
LONG_random = RMSP_EXAMPLES=20000 $(PYTEST) tests/test_functional.py -k test_anything_with_anything
LONG_machine = RMSP_MACHINES=1000 $(PYTEST) tests/test_adversarial_sequences.py
LONG_attacks = $(PYTEST) tests/test_adversarial_*.py tests/test_check.py
LONG_forks = RMSP_FORKS=1000 $(PYTEST) tests/test_adversarial_processes.py -k forks
LONG_large = $(PYTEST) -m slow
LONG_leaks = RMSP_CALLS=2000 $(PYTEST) tests/test_adversarial_leaks.py
PYTEST = $(BIN)/python -m pytest -q
$(LONG:%=long-%): long-%: $(VENV)/test.group $(VENV)/installed
	$(LONG_$*) --junitxml=$(HARDENING)/$*.xml

hardening: $(VENV)/hardening.group $(SANITIZED)/address/built $(SANITIZED)/thread/built $(VENV)/peers.group $(VENV)/demo.group $(VENV)/recordings $(VENV)/test.group $(VENV)/installed ## the tools above (of the sanitizers the quick form) and the long forms of tests, in 25 minutes; writes the table of docs/reliability.md
	mkdir -p $(HARDENING)
	$(MAKE) -j2 --output-sync=target sanitize-quick coverage cross memcheck fuzz mutation $(LONG:%=long-%) clang musl analyze
	$(BIN)/python tests/reliability.py $(HARDENING) docs/reliability.md

# The earlier version, which bench/baseline.py builds from the history; then one core, then two. Each family of peers in a
# process of its own; report.py joins the saved JSON.
FAMILIES = numpy numexpr numba torch optax
bench-quick: FAMILIES = numpy numba torch optax
bench-quick: export RMSP_BENCH_QUICK = 1
BENCH = $(BIN)/python -m pytest -q -W ignore -o python_files='bench_*.py' --benchmark-disable-gc --benchmark-columns=rounds
SAVED = build/bench/$@
bench bench-quick: $(VENV)/bench.group $(VENV)/build.group $(VENV)/installed ## measure: limits, peers, small steps; make bench-quick in 6 minutes
	rm -rf $(SAVED) && mkdir -p $(SAVED)
	$(BIN)/python bench/baseline.py
	RMSP_BENCH_THREADS=1 $(BENCH) bench/bench_versions.py --benchmark-json=$(SAVED)/1-versions.json
	for threads in 1 2; do \
	  export RMSP_BENCH_THREADS=$$threads; \
	  for family in $(FAMILIES); do \
	    RMSP_BENCH_FAMILY=$$family $(BENCH) bench/bench_peers.py --benchmark-json=$(SAVED)/$$threads-$$family.json || exit 1; \
	  done; \
	  $(BENCH) bench/bench_limits.py bench/bench_special.py bench/bench_overhead.py bench/bench_torch.py bench/bench_checkpoint.py --benchmark-json=$(SAVED)/$$threads-ours.json || exit 1; \
	done
	$(BIN)/python bench/report.py $(SAVED)/*.json $(if $(filter bench,$@),--page docs/performance.md)

docs: $(VENV)/docs.group $(VENV)/installed ## build the pages into build/docs; a warning is an error
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs build/docs

vectors: $(VENV)/test.group $(VENV)/installed ## make the test vectors of vectors/ anew, by the reference
	$(BIN)/python tests/make_vectors.py

# Of the compiled modules; pure ones are their own stubs.
STUBS = $(patsubst src/%.pyi,%,$(subst rmsprop_native/,rmsprop_native.,$(wildcard src/rmsprop_native/*.pyi)))
lint: $(VENV)/lint.group $(VENV)/demo.group $(VENV)/installed ## check style and types
	$(BIN)/ruff check $(PY_FILES)
	$(BIN)/ruff format --check $(PY_FILES) $(PAGES)
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --ignore-missing-stub --mypy-config-file pyproject.toml $(STUBS)
	$(BIN)/numpydoc lint src/rmsprop_native/*.py src/rmsprop_native/interop/*.py
	$(BIN)/cython-lint src examples/embed
	$(BIN)/clang-format --dry-run --Werror src/c/*.[ch] tests/c/*.[ch]
	printf '%s\n' src/c/*.c | xargs -P 2 -I{} $(BIN)/clang-tidy --quiet {} -- -std=c99 -Isrc/c -DRMSP_ISA=baseline $(ALL_FEATURES)
	git ls-files | xargs $(BIN)/codespell
	$(BIN)/repo-review .
	$(BIN)/zizmor --offline --quiet --persona=auditor .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.readthedocs .readthedocs.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format --default-filetype yaml CITATION.cff

format: $(VENV)/lint.group ## write code the way lint wants it
	$(BIN)/ruff check --fix $(PY_FILES)
	$(BIN)/ruff format $(PY_FILES) $(PAGES)
	$(BIN)/clang-format -i src/c/*.[ch] tests/c/*.[ch]

# Repaired for the oldest glibc that it runs with, without libgomp in it: the system's is the one that other libraries
# use, and threads are our own.
wheel: $(VENV)/build.group $(VENV)/package.group ## build sdist and a wheel for PYTHON into dist/, check both, and try the wheel with NumPy alone
	rm -rf dist build/wheel && mkdir -p build/wheel
	git clone -q . build/wheel/source # what is committed, and no walk through .venv
	$(BIN)/check-sdist --no-isolation --source-dir build/wheel/source
	$(BIN)/python -m build --sdist --outdir build/wheel build/wheel/source
	$(PYTHON) -m venv build/wheel/alone
	build/wheel/alone/bin/python -m pip --disable-pip-version-check --quiet wheel --no-deps --wheel-dir build/wheel build/wheel/*.tar.gz
	$(BIN)/auditwheel repair --exclude libgomp.so.1 --wheel-dir dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	build/wheel/alone/bin/python -m pip --disable-pip-version-check --quiet install dist/*.whl
	build/wheel/alone/bin/python -I tests/alone.py
	build/wheel/alone/bin/python -I -m rmsprop_native check

clean: ## remove what was built
	rm -rf $(VENV) build dist docs/gallery .*_cache

$(VENV)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.11")'
	@echo "An environment for everything, $(VENV); make help lists the commands:"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade "pip>=25.1"
	@touch $@

# One after another: two installations at a time would write into the same files (.ci/run has two commands at a time).
environment: ## install what all commands need
	for group in build test demo peers mpi bench lint docs package; do $(MAKE) --no-print-directory $(VENV)/$$group.group || exit 1; done
	$(MAKE) --no-print-directory $(VENV)/recordings $(VENV)/installed

# The dependency groups of pyproject.toml.
$(VENV)/%.group: pyproject.toml | $(VENV)/pip
	@echo "Packages of the group $* of pyproject.toml, into $(VENV):"
	$(PIP) install --group $*
	@touch $@

# For examples/speech.py, which reads files of aeon and does not import it: its dependencies would bring an older NumPy.
$(VENV)/recordings: | $(VENV)/pip
	$(PIP) install --no-deps aeon==1.6.0
	@touch $@

# Without build isolation, so that what did not change is not compiled again.
$(VENV)/installed: $(SOURCES) $(VENV)/build.group
	@echo "Compiling and installing rmsprop_native into $(VENV), half a minute at the first time:"
	$(PIP) install --no-build-isolation --config-settings=build-dir=build/venv .
	@touch $@

$(SANITIZED)/%/built: $(SOURCES) $(wildcard tests/c/*) $(VENV)/build.group
	$(PIP) install --no-build-isolation --no-deps --upgrade --target $(@D)/site --config-settings=build-dir=$(@D)/build \
	  --config-settings=cmake.build-type=Debug --config-settings=cmake.define.RMSPROP_TESTS=ON \
	  --config-settings=cmake.define.RMSPROP_SANITIZE=$(FLAGS_$*) .
	@touch $@
