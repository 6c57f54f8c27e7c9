# Two commands: `make demo` makes a clip, `make test` runs every check. Both set up .venv first, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
OUTPUT ?= demo.mp4

.PHONY: demo test lint e2e first_hour golden benchmarks docs graphs clean

demo: $(VENV)/.runtime
	$(BIN)/ltx2rt demo -o $(OUTPUT)

test: $(VENV)/.developer
	$(MAKE) --no-print-directory lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile tests/unit
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --ignore=tests/unit

# not part of `make test`: sets the project up twice from the package index
e2e: $(VENV)/.developer
	LTX2RT_E2E=1 $(BIN)/python -m pytest tests/e2e

# the part of it that walks the three ways in (a video, embed, serve) by the commands of the pages
first_hour: $(VENV)/.developer
	LTX2RT_E2E=1 $(BIN)/python -m pytest tests/e2e/test_first_hour.py

lint: $(VENV)/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

golden: $(VENV)/.developer
	$(BIN)/python -m tests.parity.run_golden tests/golden

benchmarks: $(VENV)/.developer
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.report

# lists in pages that are made from the code, then the site (build/site), every link checked
docs: $(VENV)/.docs
	$(BIN)/python -m tests.module_tables
	$(BIN)/python -m tests.api_page
	$(BIN)/python -m tests.defaults_page
	$(BIN)/python -m tests.adapter_page
	$(BIN)/python -m tests.flag_table
	$(BIN)/python -m tests.option_types
	$(BIN)/python -m tests.cli_page
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# what builds bundles of the released models without PyTorch; only what has changed is exported again
graphs: $(VENV)/.developer
	$(BIN)/python -m benchmarks.shipped_graphs

$(VENV)/.python: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "ltx2rt needs Python 3.11 or newer; $(PYTHON) is older. Use: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt pip setuptools
	@touch $@

$(VENV)/.runtime: pyproject.toml $(VENV)/.python
	PYTHONWARNINGS=ignore $(PIP) install -c constraints.txt --no-build-isolation -e '.[build]'
	@touch $@

$(VENV)/.developer: $(VENV)/.runtime
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[export]' --group test --group lint
	@touch $@

$(VENV)/.docs: $(VENV)/.developer
	$(PIP) install -c constraints.txt --group docs
	@touch $@

clean:
	rm -rf $(VENV) demo.mp4 demo-work
