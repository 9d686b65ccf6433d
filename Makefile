# Targets for training, tests and benchmarks. They work in a fresh checkout: each one creates .venv if it is missing.
PYTHON  ?= python3
PRESET  ?=
CORPUS  ?= pydocs
MINUTES ?= 2
ITERS   ?=
PRESETS ?=
QUICK   ?=
DEVICE  ?= gpu
WORKERS ?= 2
FACTOR  ?= 1
SEED    ?= 0
ONLY    ?=

BIN := .venv/bin
# The default preset is model-l on macOS, where MLX uses the GPU. Elsewhere it is model-s, because a CPU makes more
# updates of a smaller model in the two minutes of `make train`.
TRAIN_PRESET := $(or $(PRESET),$(if $(filter Darwin,$(shell uname)),model-l,model-s))
BENCH_PRESETS := $(or $(PRESETS),$(PRESET),model-l)

.PHONY: train test test-all torture test-device test-exports test-page bench device-report clean

# Without a prompt, a model that has learned so little of Python's help topics often writes nothing but spaces.
train: $(BIN)/mlxgpt
	$(BIN)/mlxgpt train --preset $(TRAIN_PRESET) --corpus $(CORPUS) $(if $(ITERS),--iters $(ITERS),--minutes $(MINUTES))
	$(BIN)/mlxgpt generate --max-tokens 400 $(if $(filter pydocs,$(CORPUS)),--prompt The)

# The tests run in WORKERS processes. Each has one thread for products of matrices: threads of several processes that
# wait for each other's cores make them many times slower.
test: $(BIN)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-all: $(BIN)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not torture"

# Random failures of files, processes and the server. FACTOR multiplies their number, SEED draws others, and ONLY selects
# tests by a part of their names.
torture: $(BIN)/.test
	OMP_NUM_THREADS=1 MLXGPT_TORTURE=$(FACTOR) MLXGPT_TORTURE_SEED=$(SEED) \
		$(BIN)/python -m pytest -m torture tests/torture $(if $(ONLY),-k "$(ONLY)")

# The tests on the device that is there: the GPU, or with DEVICE=cpu the CPU. Tests of other devices are skipped.
test-device: $(BIN)/.test
	MLXGPT_TEST_DEVICE=$(DEVICE) $(BIN)/python -m pytest

# Loads exported models in transformers, mlx-lm and llama.cpp, which are installed in a separate environment. Compares
# the mixers with those of transformers.
test-exports: $(BIN)/.test .venv-exports/.ready
	MLXGPT_EXPORT_PYTHON=$(CURDIR)/.venv-exports/bin/python $(BIN)/python -m pytest \
		tests/formats/test_huggingface.py tests/formats/test_llama.py tests/formats/test_llama_cpp.py \
		tests/formats/test_ternary_programs.py tests/model/test_layers_elsewhere.py

# Tests the web pages in a browser. Needs Chromium.
test-page: $(BIN)/.test $(BIN)/.page
	$(BIN)/python -m pytest -m slow tests/serve/page
	$(BIN)/python -m pytest -m slow tests/watch/dashboard/test_page.py

bench: $(BIN)/.bench
	$(BIN)/mlxgpt bench $(BENCH_PRESETS:%=--preset %) --corpus $(CORPUS) $(if $(QUICK),--quick)

# Tests and measures this machine, which takes about ten minutes. Writes runs/device-report/report.md and report.json.
device-report: $(BIN)/.test $(BIN)/.bench
	$(BIN)/python experiments/device_report.py $(if $(QUICK),--quick)

clean:
	rm -rf .venv .venv-exports dist build

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mlxgpt needs Python 3.11 or later; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

$(BIN)/mlxgpt: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(BIN)/.test: $(BIN)/mlxgpt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

$(BIN)/.page: $(BIN)/mlxgpt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[page]'
	@touch $@

# PyTorch, which the benchmark compares with, and matplotlib, which draws its chart.
$(BIN)/.bench: $(BIN)/mlxgpt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

.venv-exports/.ready:
	$(PYTHON) -m venv .venv-exports
	.venv-exports/bin/python -m pip install --quiet --disable-pip-version-check torch transformers accelerate mlx-lm \
		xllamacpp gguf $(if $(filter Linux,$(shell uname)),'mlx[cpu]')
	@touch $@
