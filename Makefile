# Everything stands on the environment in .venv/, which is made from requirements.lock when it is first needed.
# No target needs it to be activated.

SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
BOOTSTRAP := .cache/bootstrap
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help env demo test check audit proof chaos bench format lock clean

help: ## Say what can be made.
	@grep -E '^[a-z]+: .*##' Makefile | sed -E 's/^([a-z]+): .*## (.*)/  make \1\t\2/' | expand -t 16

env: $(STAMP) ## Make the environment in .venv/, with the command .venv/bin/clocktower.

demo: $(STAMP) ## Show the main job, then go on serving (ARGS=--exit ends after the verdict).
	@$(BIN)/clocktower demo $(ARGS)

# Two processes, each with engines of its own; a file stays in one of them. ARGS="-n 0" takes one process, which --pdb needs.
test: $(STAMP) ## Run every test, against real PostgreSQL and Valkey (ARGS=… goes to pytest).
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(STAMP) ## Check style, types, imports, migrations and the lock file.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-logo --cache-dir .cache/import-linter
	$(BIN)/clocktower migrate --check --embedded
	$(BIN)/python deploy/lock.py --check

audit: $(STAMP) ## Ask what is known against the versions that are locked (needs the network; ARGS=--service=osv).
	@$(BIN)/python deploy/audit.py $(ARGS)

proof: $(STAMP) ## Switch one guard off after the other, and see that the checker of the chaos says so.
	@$(BIN)/python -m pytest -m proof $(ARGS)

chaos: $(STAMP) ## Break something in the middle of an opening, again and again (SEED=7 ROUNDS=200; ARGS=--help says more).
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

bench: $(STAMP) ## Measure the service beside its peers (QUICK=1 takes three minutes; ARGS=--help says more).
	@$(BIN)/python -m loadtest.bench $(if $(QUICK),--quick) $(ARGS)

format: $(STAMP) ## Format the code, and mend what can be mended by itself.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: $(STAMP) ## Lock the newest versions that pyproject.toml allows, then make the environment anew.
	$(BIN)/python deploy/lock.py --upgrade
	@$(MAKE) env

clean: ## Remove what was made, the data directory excepted.
	rm -rf $(VENV) .cache build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv installs; it is taken from the PATH, or fetched with pip at the version and hashes of the lock file.
$(STAMP): requirements.lock deploy/build.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, and $(PYTHON) is not that: name one with make PYTHON=python3.12."; exit 1; }
	@if command -v uv >/dev/null 2>&1; then uv=uv; else \
	  uv=$(BOOTSTRAP)/bin/uv; \
	  if ! [ -x $$uv ]; then \
	    if $(PYTHON) -m pip --version >/dev/null 2>&1; then pip="$(PYTHON) -m pip"; \
	    elif $(PYTHON) -m venv $(BOOTSTRAP)/venv >/dev/null 2>&1; then pip="$(BOOTSTRAP)/venv/bin/python -m pip"; \
	    else echo "Neither uv nor pip was found: install one of them (on Debian: apt install python3-pip)."; exit 1; fi; \
	    $$pip install --quiet --disable-pip-version-check --require-hashes --no-deps --upgrade \
	      --target $(BOOTSTRAP) -r deploy/build.lock || exit 1; \
	  fi; \
	fi; \
	set -e; \
	echo "Making the environment in $(VENV)/ (the first time takes a minute or two)"; \
	interpreter=$$($(PYTHON) -c 'import sys; print(sys.executable)'); \
	if ! [ -x $(BIN)/python ]; then $$uv venv --quiet --no-project --python "$$interpreter" $(VENV); fi; \
	$$uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock; \
	$$uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --offline --editable .; \
	touch $@
