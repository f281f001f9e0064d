# `make` alone says what there is. Everything runs in .venv, which is made when it is needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test soak check format bench clean

help: ## this list
	@echo "DyeFreeNet: virtual contrast CT on Ray. For research only."
	@echo
	@sed -n 's/^\([a-z][a-z]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) \
		| while IFS='|' read -r name text; do printf '%-15s%s\n' "$$name" "$$text"; done
	@echo
	@echo "Another Python: make demo PYTHON=python3.12. Some tests: make test ARGS='-k house'."

install: $(STAMP) ## .venv with everything that is needed, at the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "Python 3.10 or later is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1)." \
			"Name another: make PYTHON=/path/to/python3"; exit 1; }
	@[ -x $(BIN)/python ] || { echo "Making .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; } || { \
		rm -rf .venv; echo "On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing into .venv: a few minutes the first time; details in .venv/install.log"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' \
		>.venv/install.log 2>&1 || { tail -n 15 .venv/install.log; \
		echo "The installation failed; the whole of it is in .venv/install.log."; exit 1; }
	@touch $@

demo: $(STAMP) ## the whole cascade on made-up CT, from DICOM to the report page
	@$(BIN)/python jobs/full_cascade.py --recipe demo $(ARGS)

test: $(STAMP) ## the tests; each one that is skipped is named with its reason
	@$(BIN)/python -m pytest -rs $(ARGS)

soak: $(STAMP) ## the long proofs: kill -9 at random moments, 10,000 series, 100,000 mutated headers
	@$(BIN)/python -m pytest -rs -m soak tests/soak $(ARGS)
	@DYEFREENET_FUZZ=100000 $(BIN)/python -m pytest -rs --timeout 3600 tests/data/test_hostile.py -k mutated

check: $(STAMP) ## format, lint, types, and which way imports run
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP) ## put the code into the house's form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) ## measure what the performance claims rest on: every script of benchmarks/
	@for script in benchmarks/[a-z]*.py; do echo "$$script"; $(BIN)/python $$script || exit 1; done

clean: ## remove caches and build leftovers; .venv and runs/ stay
	@rm -rf build dist platform/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find platform jobs tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
