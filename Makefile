PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt

.PHONY: demo test test-slow lint benchmark gpu-check gpu-report

$(BIN)/searchphase: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable .
	touch $@

$(VENV)/.test: $(BIN)/searchphase
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable ".[test]"
	touch $@

demo: $(BIN)/searchphase
	$(BIN)/searchphase demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow" --durations=10

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow --durations=10

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

benchmark: $(VENV)/.test
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/latency.py

gpu-check: $(VENV)/.test
	$(BIN)/python benchmarks/gpu.py --check

gpu-report: $(VENV)/.test
	$(BIN)/python benchmarks/gpu.py --check --benchmark --folder $${GPU_REPORT:-gpu-report}
