# make demo: install, then the whole path on real digits.  make test: install, then every test but those of survival.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
STORAGE ?= storage
BIN := .venv/bin
UV := $(BIN)/uv
LOCK_WITH = $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate \
	--python-version 3.11 --custom-compile-command "make lock" pyproject.toml --group dev

.PHONY: demo test survival lint tables ui ffcv lock clean

demo: .venv/installed ffcv
	$(BIN)/python benchmarks/demo.py --storage $(STORAGE)

# Two files at a time, then by themselves those tests that measure time.
test: .venv/installed ffcv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not alone and not cluster and not slow" -n 2 --dist loadfile --no-loadscope-reorder
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m alone

# Machines that die, on two hosts in network namespaces of this one: Linux, root, and several minutes.
survival: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Every table and figure of results/, from results/runs.parquet.
tables: .venv/installed
	$(BIN)/python benchmarks/tables.py

ui: .venv/installed
	$(BIN)/python -m cluster.ui $(STORAGE)

# The environment of requirements.lock, by a uv of its own. Compiled once here: imports are then twice as fast.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
		{ echo "Orchard needs Python 3.11 or 3.12; name one: make PYTHON=python3.12"; exit 1; }
	test -x $(UV) || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; }
	$(UV) pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	touch $@

# FFCV is an extra that builds against OpenCV. Where it cannot be had the rest works without it, so this never fails.
ffcv: .venv/ffcv-tried

.venv/ffcv-tried: .venv/installed requirements-ffcv.lock
	@sh .ci/install-ffcv $(UV) $(BIN)/python
	@touch $@

lock:
	$(LOCK_WITH) --output-file requirements.lock
	$(LOCK_WITH) --extra ffcv --output-file requirements-ffcv.lock

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
