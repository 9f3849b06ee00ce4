# `make demo` and `make test` are all the set-up there is: each installs what it needs into .venv first.
#   PYTHON=/path/to/python3.11   another interpreter      JOBS=4   more test processes

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed
WITH_TOOLS := .venv/.installed-with-tools
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python -e
# Each process begins with its own half of the files: what the tests of a file share is made once.
SUITE := -m pytest -n $(JOBS) --dist worksteal

# Some machines (containers of CI, often) tell Python to keep no bytecode: each process would then compile
# torch and transformers anew, 15 seconds and more, and the suite starts many.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-lowest test-newest test-integrations format lint docs

demo: $(INSTALLED)
	$(BIN)/smd-hf demo

test: $(WITH_TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python $(SUITE)

format: $(WITH_TOOLS)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(WITH_TOOLS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

# The site is in site/, to read from a folder: site/index.html. No network is needed.
docs: $(WITH_TOOLS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file .mkdocs.yml

# The suite with the lowest versions that pyproject.toml allows, and with the newest there are.
test-lowest test-newest: test-%: $(INSTALLED)
	$(PYTHON) -m venv --clear .venv-$*
	$(BIN)/uv pip install --quiet --python .venv-$*/bin/python --resolution $(if $(filter lowest,$*),lowest-direct,highest) -e '.[test,docs]'
	OMP_NUM_THREADS=1 .venv-$*/bin/python $(SUITE)

# Gradio pages in Debian's Chromium (apt-get install chromium), trackio and MLflow.
test-integrations: $(INSTALLED)
	$(PYTHON) -m venv --clear .venv-integrations
	$(BIN)/uv pip install --quiet --python .venv-integrations/bin/python -e '.[integrations]'
	OMP_NUM_THREADS=1 .venv-integrations/bin/python -m pytest -m 'integration' tests

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "smd_hf needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(INSTALL) .
	@touch $@

# The demo goes without what only tests need.
$(WITH_TOOLS): $(INSTALLED)
	$(INSTALL) '.[dev]'
	@touch $@
