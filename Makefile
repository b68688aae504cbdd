# The few commands a person needs. Each sets up what it needs in .venv; remove that folder to start
# afresh. CI runs the same ones (.ci/run).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CORE   := pyproject.toml CMakeLists.txt $(shell find csrc -type f)
CPP    := $(shell find csrc tests/csrc -name '*.h' -o -name '*.cpp')
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
# What every backend runs, and the simulated neuron backend's run of it.
SHARED := tests/backends tests/cli/test_verify.py
NEURON := TKG_TEST_BACKENDS=neuron $(PYTEST) $(SHARED) -k neuron

.PHONY: demo test test-gpu test-neuron bench lint format sanitize smoke clean

demo: $(VENV)/run.stamp  ## a real model generates text, every attention layer through the block
	$(BIN)/tkg generate "Explain in two sentences why the sky is blue."

# The suite on the backends of the CPU, then the backends' part of it in short (tests/short.py): cuda
# under Triton's interpreter, and neuron on one simulated core and on two.
test: $(VENV)/test.stamp  ## the whole test suite
	$(PYTEST)
	TKG_TEST_SHORT=1 TRITON_INTERPRET=1 TKG_TEST_BACKENDS=cuda $(PYTEST) $(SHARED) -k cuda
	TKG_TEST_SHORT=1 TKG_EXAMPLES=15 TKG_SWEEP=20 $(NEURON)
	TKG_TEST_SHORT=1 TKG_EXAMPLES=2 TKG_TEST_NEURON_CORES=2 $(NEURON)

test-gpu:  ## the suite on this machine's GPU, and compute-sanitizer; nothing is built or installed
	PYTHONPATH=src:. $(PYTHON) -m tests.on_gpu

test-neuron: $(VENV)/test.stamp  ## the backends' part of the suite on neuron, nothing left out
	$(NEURON)
	TKG_TEST_NEURON_CORES=2 $(NEURON)

bench: $(VENV)/test.stamp  ## the block beside its peers, checked and timed; files in build/bench
	$(BIN)/tkg bench --quick --peer all --out build/bench

lint: $(VENV)/lint.stamp  ## style and types; changes nothing
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/pyright

format: $(VENV)/lint.stamp  ## rewrite the sources in the project's style
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/clang-format -i $(CPP)

sanitize: sanitize-address,undefined sanitize-thread  ## the C++ core's own tests, instrumented

# What is left out has the same source as what is built; the units for bfloat16 read memory in ways of
# their own, which is nothing to ThreadSanitizer.
sanitize-%: LEAVE_OUT = avx2;avx512
sanitize-thread: LEAVE_OUT = avx2;avx512;avx512_bf16;avx512_amx
sanitize-%: $(VENV)/run.stamp
	$(BIN)/pip install --quiet cmake ninja
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/$@ -G Ninja \
	  -DTKG_PYTHON=OFF -DTKG_TESTS=ON -DTKG_SANITIZE=$* "-DTKG_LEAVE_OUT=$(LEAVE_OUT)"
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/$@
	$(BIN)/ctest --test-dir build/$@ --output-on-failure

smoke: $(VENV)/run.stamp  ## the wheel, installed into an empty environment
	rm -rf build/smoke && $(PYTHON) -m venv build/smoke/venv
	build/smoke/venv/bin/pip install --quiet --upgrade pip
	build/smoke/venv/bin/pip wheel --quiet --no-deps --wheel-dir build/smoke .
	build/smoke/venv/bin/pip install --quiet build/smoke/tkg-*.whl
	cd build/smoke && venv/bin/python $(CURDIR)/examples/smallest_call.py
	build/smoke/venv/bin/pip install --quiet "$$(ls build/smoke/tkg-*.whl)[run]"
	cd build/smoke && venv/bin/tkg info && venv/bin/tkg verify --backend cpu --tag smoke

clean:
	rm -rf $(VENV) build

$(VENV)/pip.stamp:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	touch $@

$(VENV)/run.stamp: $(VENV)/pip.stamp $(CORE)
	$(BIN)/pip install --quiet --editable '.[run]'
	touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(BIN)/pip install --quiet --group test
	touch $@

$(VENV)/lint.stamp: $(VENV)/test.stamp
	$(BIN)/pip install --quiet --group lint
	touch $@
