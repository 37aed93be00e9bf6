# The verbs are the manual: make help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A notebook's cells are laid out by hand.
FORMATTED := src tests benchmarks

# One torch thread a process, waiting passively: a second thread that spins beside a busy process slows both.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help environment book page serve test lint format hooks changelog clean

help: ## say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

environment: $(VENV)/.installed ## create .venv and install everything pinned in constraints.txt

# Made anew when what it should hold has changed; a half-made one has no stamp and is finished next time.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "lossbook needs Python 3.11 to 3.13, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

book: environment ## run every notebook at the profile `quick` and build the site
	$(BIN)/lossbook build

page: environment ## the same for one paper: make page PAPER=slug
	$(BIN)/lossbook build --only $(or $(PAPER),$(error which paper? make page PAPER=slug))

serve: environment ## show the site that was built last
	$(BIN)/lossbook serve

lint: environment ## style, what may import what, and types; `make format` mends the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check $(FORMATTED)
	$(BIN)/lint-imports --no-cache
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: environment ## mend the style, where a tool can; write what the parts re-export
	$(BIN)/python -m lossbook.press.pages.exports
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format $(FORMATTED)

hooks: environment ## check before every commit and push (.pre-commit-config.yaml)
	$(BIN)/pre-commit install

test: $(if $(PAPER),environment,lint) ## lint, all tests, every notebook at the profile `smoke`; make test PAPER=slug: one paper's
ifdef PAPER
	$(BIN)/pytest --paper $(PAPER) $(wildcard tests/methods/*/test_$(PAPER).py) tests/site/test_pages.py \
		--deselect tests/site/test_pages.py::test_what_is_bad_in_a_page_is_found
else
	$(BIN)/pytest --numprocesses 2 --dist load --maxschedchunk 1 --cov --cov-report term:skip-covered
endif

changelog: environment ## before a release: write its papers into CHANGELOG.md
	$(BIN)/python -m lossbook.press.pages.changelog

clean: ## remove what was built; the environment stays (rm -r .venv removes it)
	rm -rf _build .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
