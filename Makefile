# Two commands for a fresh machine: `make demo` and `make test`. Each makes .venv and installs first.
PYTHON ?= python3
# What is installed besides fadeviz; EXTRAS=dev,all for everything that it can work with. The tests of what is absent skip.
EXTRAS ?= dev,browser
BIN := .venv/bin
INSTALLED := .venv/installed

DOCS_INSTALLED := .venv/docs-installed

PAGE := fadeviz/page
PAGE_INSTALLED := $(PAGE)/node_modules/.installed

.PHONY: demo test lint slow docs page page-check coverage gpu clean

# Resumes an interrupted demo; for a finished one, only the figures are drawn again.
# To start over: .venv/bin/fadeviz demo --overwrite
demo: $(INSTALLED)
	$(BIN)/fadeviz demo

# Files in their order: sorted by their number of tests, the few long ones would come last, each on one core.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Formatting, lint, types, and who may import whom.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The tests that take minutes. Those on a real Slurm need root and, on Debian:
#   apt-get install slurm-wlm slurm-wlm-basic-plugins munge
# and are skipped otherwise (tests/real_slurm.sh starts and stops the daemons).
slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow -n auto --dist loadfile --no-loadscope-reorder

# The documentation site, from what is in the repository and without a network: docs/_build/html/index.html. Warnings are errors.
# INTERSPHINX=1 make docs also links to the documentation of Python, numpy and torch, whose inventories it downloads.
docs: $(DOCS_INSTALLED)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

# The scripts of the pages, from TypeScript; needs Node 20 or newer, which the extra "page" brings.
page: export PATH := $(CURDIR)/$(BIN):$(PATH)
page: $(PAGE_INSTALLED)
	cd $(PAGE) && npm run --silent check && npm run --silent build

# Whether they are clean, and the built ones in the repository are those of the sources.
page-check: page
	git diff --exit-code --stat -- $(PAGE)/built

$(PAGE_INSTALLED): export PATH := $(CURDIR)/$(BIN):$(PATH)
$(PAGE_INSTALLED): $(PAGE)/package.json $(PAGE)/package-lock.json
	cd $(PAGE) && npm ci --no-audit --no-fund --silent
	touch $(PAGE_INSTALLED)

# Which lines and branches the tests reach; takes longer than `make test`.
coverage: $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[coverage]"
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing

# On a machine with a CUDA device, nine minutes at most: checks and measures everything, with the Python that is there and no
# network. Nothing is installed. The tests alone: python3 -m pytest -m gpu
gpu:
	$(PYTHON) scripts/gpu_check.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt torch -e ".[$(EXTRAS)]"
	touch $(INSTALLED)

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[docs]"
	touch $(DOCS_INSTALLED)

clean:
	rm -rf .venv $(PAGE)/node_modules build docs/_build docs/generated .coverage *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
