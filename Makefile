# `make help` lists the targets. Each one sets up .venv by itself when that is missing or stale.

# The Python that .venv is made with, 3.11 or newer.
PYTHON ?= python3
# More arguments for pip, such as where another build of torch is found:
#   make install PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# What `make train` trains on. Not `?=`: many shells have an ENV of their own.
ENV = CartPole-v1
# Which experiment `make experiment` runs.
NAME = list
# More arguments for the command that a target runs, such as: make test ARGS="-k gae"
ARGS =

BIN := .venv/bin
RUN_BENCH = $(BIN)/python -m pytest benchmarks -q --benchmark-quiet --benchmark-json benchmarks/results/latest.json
# A peer that cannot be installed beside the others' pinned versions; a folder of its own, without dependencies.
TIANSHOU := benchmarks/peers/requirements-tianshou.txt

.DEFAULT_GOAL := help
.PHONY: help install train test test-slow test-hosts docs-check lint format type bench bench-quick bench-check bench-accept experiment check always

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

install: .venv/.installed-dev ## set up .venv with fastac and the tools for working on it

train: .venv/.installed-core ## train A2C on CartPole-v1 until it is solved (ENV=... ARGS="--seed 1")
	$(BIN)/fastac train $(ENV) --algo a2c $(if $(filter CartPole-v1,$(ENV)),--until-return 475) $(ARGS)

test: .venv/.installed-dev ## run the tests, a process per core, without the slow ones (ARGS="-k gae")
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-slow: .venv/.installed-dev ## run the slow tests, which take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

test-hosts: .venv/.installed-dev ## train on two hosts that are network namespaces, and break things (needs root)
	$(BIN)/python -m pytest -m hosts tests/hosts -rs $(ARGS)

docs-check: .venv/.installed-dev ## run every command that a page shows
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_pages.py $(ARGS)

lint: .venv/.installed-dev ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.installed-dev ## fix style and formatting where that can be done automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: .venv/.installed-dev ## check the types
	$(BIN)/mypy

bench: .venv/.installed-tianshou ## time all workloads beside the peers, into benchmarks/results/latest.json (ARGS="-k W5")
	$(RUN_BENCH) $(ARGS)

bench-quick: .venv/.installed-tianshou ## time a part of them, in under 3 minutes
	$(RUN_BENCH) --quick $(ARGS)

bench-check: .venv/.installed-dev ## fail if this tree does more, or is slower, than its base (BASE=rev, ARGS=--quick)
	@$(BIN)/python -m benchmarks.counts
	@$(BIN)/python -m benchmarks.gate $(if $(BASE),--base '$(BASE)') $(ARGS)

experiment: .venv/.installed-dev ## answer one of the lecture's questions (NAME=gae-lambda ARGS="--seeds 10"; NAME=list)
	@$(BIN)/python -m benchmarks.experiments $(NAME) $(ARGS)

bench-accept: .venv/.installed-dev ## write benchmarks/counts.json anew, to be committed (REASON="..." of other bits or more memory)
	@$(BIN)/python -m benchmarks.counts --accept
	@$(BIN)/python -m benchmarks.gate declare $(if $(BASE),--base '$(BASE)') $(if $(REASON),--reason '$(REASON)')

check: lint type test ## everything that must hold before a commit lands

# One stamp for each set of extras, written only after pip succeeded. Every set includes the core.
EXTRAS-dev := [dev]
EXTRAS-bench := [bench]
.venv/.installed-%: .venv/.made pyproject.toml .constraints.txt
	@echo "Installing fastac ($*) and what it needs into .venv; the first time this takes some minutes."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c .constraints.txt \
	  --config-settings editable_mode=compat -e '.$(EXTRAS-$*)' # in a way that type checkers find, too
	@$(BIN)/python -m fastac.kernels || true # without compiled kernels the slower reference ones run
	@touch .venv/.installed-core $@

.venv/.installed-tianshou: .venv/.installed-bench $(TIANSHOU)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --no-deps --upgrade \
	  --target .venv/tianshou -r $(TIANSHOU)
	@touch $@

# .made holds the path that .venv was made for, since the scripts in it do too.
.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "fastac needs Python 3.11 or newer, and '$(PYTHON)' is none; name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' lacks the venv module; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@$(PYTHON) -m venv --clear .venv
	@echo "$(CURDIR)" > $@

# Make .venv anew if the checkout has moved, or if its Python is gone or has become another version.
ifneq ($(shell cat .venv/.made 2>/dev/null && $(BIN)/python -c 'import pip' 2>&1 || echo unusable),$(CURDIR))
.venv/.made: always
endif
