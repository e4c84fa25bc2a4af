# The first python that runs; `make PYTHON=...` overrides it.
PYTHON ?= $(shell for python in python3.11 python3; do $$python -c "" 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
# A test file at a time on each core; what they start computes with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
STAMP := .venv/.installed
SOURCES := metarl envs agents benchmarks tests examples docs

.DEFAULT_GOAL := help
.PHONY: help install train test check slow types docs release bench gpu clean

help:
	@echo "make train   install, then meta-train the main job: MAML-TRPO on a family of CartPoles"
	@echo "make test    fast tests"
	@echo "make check   format, lint, types and fast tests"
	@echo "make slow    learning tests, which take minutes"
	@echo "make types   mypy --strict on the installed layout"
	@echo "make docs    the documentation, build/docs/index.html"
	@echo "make release builds and checks dist/; QUICK=1 takes what metarl depends on from .venv"
	@echo "make bench   speed benchmarks"
	@echo "make gpu     on a machine with a GPU: its tests, speed tables, and three iterations of training"
	@echo "make clean   remove the virtual environment and everything built"

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 found; try make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit("metarl needs Python 3.11 or later; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "Installing metarl and its dependencies into .venv (once; a few minutes) ..."
	@$(PYTHON) -m venv .venv
	@echo "  1/2 PyTorch"
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@echo "  2/2 metarl and the rest"
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

train: $(STAMP)
	@$(BIN)/metarl train

test: $(STAMP)
	$(PYTEST) -m "not slow" --timeout 300

check: $(STAMP)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	@$(MAKE) --no-print-directory types test

slow: $(STAMP)
	$(PYTEST) -m slow

# Type checkers cannot follow an editable install that maps envs/ to metarl.envs: show them the installed layout.
types: $(STAMP)
	@rm -rf build/types
	@mkdir -p build/types/metarl
	@ln -s $(addprefix ../../../,$(filter-out %/__pycache__,$(wildcard metarl/*)) envs agents benchmarks) build/types/metarl/
	cd build/types && ../../$(BIN)/mypy --strict --config-file ../../setup.cfg --cache-dir ../../.mypy_cache -p metarl

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . build/docs
	@echo "build/docs/index.html"

release: $(STAMP)
	.ci/release

bench: $(STAMP)
	$(BIN)/python -m metarl.benchmarks.speed.arrays
	OMP_NUM_THREADS=1 $(BIN)/python -m metarl.benchmarks.speed

gpu: $(STAMP)
	$(BIN)/python -m metarl.benchmarks.gpu

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
