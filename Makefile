# Each target does its own set-up, in .venv; a second call finds it done.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart align test test-slow test-assets test-parity lint bench bench-tpu clean

quickstart: .venv/core
	$(BIN)/python -m experiments.pretrain --config=configs/pretrain/shakespeare_char.py --workdir=runs/quickstart
	@echo "Next: make align, from text to a model aligned by people's judgements, in less than twenty minutes."

align: .venv/align
	$(BIN)/python -m experiments.align --road=configs/align/positive.py --workdir=runs/align

# In their order: files of few, long tests would else come last, when one of the two has nothing left to do.
test: .venv/test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/test
	$(BIN)/python -m pytest -m slow

test-assets: .venv/parity
	$(BIN)/python -m pytest -m assets

test-parity: .venv/parity
	$(BIN)/python -m pytest tests/parity -m 'parity and not assets'

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/bench
	$(BIN)/python bench/train_step.py
	$(BIN)/python bench/loss_memory.py
	$(BIN)/python bench/loop.py
	$(BIN)/python bench/load_weights.py
	$(BIN)/python bench/decode.py
	$(BIN)/python bench/quantization.py
	$(BIN)/python bench/reward.py
	$(BIN)/python bench/rollouts.py
	$(BIN)/python bench/attention.py
	$(BIN)/python bench/resumes.py

bench-tpu: .venv/tpu
	$(BIN)/python bench/tpu_attention.py

# Where Python comes without ensurepip (Colab, Debian), the pip outside puts one inside.
.venv/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gpt_jax needs Python 3.11 or later")'
	$(PYTHON) -m venv .venv || \
	  { $(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python .venv/bin/python install -q pip; }

.venv/core: .venv/bin/pip setup.py
	$(BIN)/python -m pip install -q -e .
	touch $@

.venv/test: .venv/core
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@

.venv/align: .venv/core
	$(BIN)/python -m pip install -q -e '.[align]'
	touch $@

.venv/parity: .venv/test
	$(BIN)/python -m pip install -q -e '.[parity]'
	touch $@

# What compiles for TPUs on a machine that has none.
.venv/tpu: .venv/core
	$(BIN)/python -m pip install -q -e '.[tpu]'
	touch $@

.venv/bench: .venv/core
	$(BIN)/python -m pip install -q -e '.[bench]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
