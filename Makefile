# make demo | test | test-all | test-cluster | lint | format | docs | bench | bench-gpu: each makes .venv first and installs what
# constraints.txt pins. make bench-gpu DEVICE=cpu rehearses; with PYTHON_BIN=python3 it takes that Python as it is.
PYTHON ?= python3
BIN := .venv/bin
# One process a core, of one thread (tests/conftest.py): OpenMP threads that share busy cores wait for each other.
PYTEST := $(BIN)/python -m pytest -q -n auto --dist loadfile
# A mark that the environment fits the project's files; made again when they change.
READY := .venv/.ready

.PHONY: demo test test-all test-cluster lint format docs bench bench-gpu install
install: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python tools/demo.py

test: $(READY)
	$(PYTEST) -m 'not slow and not gpu'

test-all: $(READY)
	$(PYTEST) -m 'not cluster'

# Both stages under a real Slurm of two nodes on this machine, in four minutes; nothing is left running. Root gets Debian's
# packages installed where they are missing; elsewhere the tests are skipped with the reason.
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq
test-cluster: $(READY)
	-command -v slurmctld || test "$$(id -u)" != 0 || \
	  { $(APT) update && $(APT) install -y --no-install-recommends slurm-wlm munge; }
	$(BIN)/python -m pytest -q -s -n 0 -m cluster tests/cluster

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site in site/; a link that leads nowhere is an error (with --quiet it would be none). The first call installs mkdocs.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict --site-dir site

# Not those that need pictures, networks or runs, named on their command line: their first lines say how.
STUDIES := fidelity five_systems gpu people_groups quality_gate rare_classes rate step stored_views students
bench: $(READY)
	for script in $(filter-out $(STUDIES:%=benchmarks/%.py),$(wildcard benchmarks/*.py)); do \
	  $(BIN)/python $$script || exit 1; done

DEVICE := cuda
PYTHON_BIN := $(BIN)/python
bench-gpu: $(if $(filter $(BIN)/python,$(PYTHON_BIN)),$(READY))
	PYTHONPATH=$(CURDIR)/src$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON_BIN) benchmarks/gpu.py --device $(DEVICE)
