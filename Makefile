# Two commands: `make book` renders the book, `make test` checks everything. Both set up .venv on first use.
#   PYTHON=python3.12   another interpreter (3.11 to 3.13)
#   TORCH='torch==...'  another build of torch, with any pip options it needs (for CUDA, say)

PYTHON ?=
TORCH ?= torch==2.13.0
BIN := .venv/bin
PAGE := _build/html/index.html
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Notebooks run many small operations: one frozen hash seed keeps set order, and with it every output, the same.
export PYTHONHASHSEED := 0

.PHONY: book test quick environment lint contracts types doctests unit chapters browse benchmark clean help

help:
	@echo "make book   render the book (first run: sets up .venv; a few minutes)"
	@echo "make test   lint, contracts, types, examples, unit tests, chapters"
	@echo "make quick  in a minute: lint, contracts, types, the tests nearest to what changed"

environment:
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" sh tools/environment.sh

book: environment
	@python tools/execute.py; status=$$?; [ $$status -lt 128 ] || exit $$status; \
	echo "Pages"; \
	SIMBA_LAB_STATIC=1 jupyter-book build . -W --keep-going -n --quiet || status=1; \
	python tools/check_pages.py _build/html || status=1; \
	[ $$status -eq 0 ] && echo "Open $(CURDIR)/$(PAGE)"; exit $$status

test: environment lint contracts types doctests unit chapters

quick:
	@python tools/quick.py

lint:
	@echo "Lint"
	@ruff check .
	@ruff format --check .
	@python tools/notebooks.py --check book/*.ipynb

contracts:
	@echo "Contracts"
	@lint-imports

types:
	@echo "Types"
	@mypy

# These run side by side: threads that wait leave the core to the others. Alone, waiting busily is faster.
# Unit tests run three at a time: those of the federation wait most of their time.
doctests unit chapters: export OMP_WAIT_POLICY := passive

doctests:
	@echo "Examples in docstrings"
	@pytest --doctest-modules -n 2 --dist loadfile -q simba_lab --ignore-glob="*/__init__.py"

unit:
	@echo "Unit tests"
	@pytest -n 3 --dist loadfile --no-loadscope-reorder -q

chapters:
	@echo "Chapters"
	@pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=1800 -n 2 --dist loadfile --no-loadscope-reorder -q \
		$$(python tools/execute.py --list)

# Opens every page in Chromium with the network blocked; needs Chromium and the extra "browser".
browse:
	@python tools/browse.py _build/html

benchmark: environment
	@python benchmarks/synthesis.py
	@python benchmarks/streaming.py
	@python benchmarks/training.py
	@python benchmarks/encoding.py
	@python benchmarks/attribution.py

clean:
	@rm -rf _build .venv .pytest_cache .ruff_cache .import_linter_cache
