# make demo | test | test-all | lint | bench: each makes .venv first and installs what constraints.txt pins.
PYTHON ?= python3
BIN := .venv/bin
# A mark that the environment fits the project's files; made again when they change.
READY := .venv/.ready

.PHONY: demo test test-all lint format bench install
install: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python tools/demo.py

test: $(READY)
	$(BIN)/python -m pytest -q -m 'not slow and not gpu'

test-all: $(READY)
	$(BIN)/python -m pytest -q

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done
