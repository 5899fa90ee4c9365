# `make demo` and `make test` need Python >= 3.10 and nothing else: they set up .venv themselves.
PYTHON ?= python3
# Not ?=: some shells keep a variable of this name.
ENV = CartPole-v1
STEPS =

BIN = .venv/bin
INSTALLED = .venv/.installed
# Networks this small are faster on one thread, and two test workers do not fight over the cores.
ONE_THREAD = OMP_NUM_THREADS=1

.PHONY: help demo test lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo [ENV=CartPole-v1] [STEPS=...]  train, evaluate, save, load, draw the learning curve into runs/"
	@echo "make test                                run the tests"
	@echo "make lint                                check style and types"
	@echo "make format                              put the code in the project's format"
	@echo "make clean                               remove .venv and what tools left"
	@echo "PYTHON=... picks the interpreter that .venv is made with (default: python3)"

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "sb3_npg needs Python 3.10 or newer: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(ONE_THREAD) $(BIN)/python -m examples.demo --env $(ENV) $(if $(STEPS),--steps $(STEPS))

test: $(INSTALLED)
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
