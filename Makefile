# Two commands matter: `make demo` and `make test`. Both install what they need first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || echo python3)
# --no-deps: the locks are complete, and a resolver would look at releases that are newer than they are.
PIP := -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help setup tools demo test attacks boundary bench lint lock clean

help: ## Show what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: tools .venv/.ready .venv-node/.ready .venv-aws/.ready node_modules/.ready ## Install everything into this directory

tools:
	@bash local/system-packages.sh "$(PYTHON)"

.venv/.ready: requirements.txt pyproject.toml
	@echo "==> kit, CLI and test tools into .venv"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python $(PIP) -r requirements.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv-node/.ready: node/requirements.txt
	@echo "==> Apache MXNet and the node runtime's needs into .venv-node"
	@$(PYTHON) -m venv .venv-node
	@.venv-node/bin/python $(PIP) -r node/requirements.txt
	@touch $@

.venv-aws/.ready: local/requirements.txt
	@echo "==> the embedded AWS into .venv-aws"
	@$(PYTHON) -m venv .venv-aws
	@.venv-aws/bin/python $(PIP) -r local/requirements.txt
	@touch $@

node_modules/.ready: package-lock.json
	@echo "==> the CDK command line into node_modules"
	@npm ci --no-audit --no-fund --loglevel=error
	@touch $@

demo: setup ## Deploy, train, verify, report, tear down: everything on this machine
	@.venv/bin/holdfast local demo

test: setup lint ## Run every check and test
	@.venv/bin/python -m pytest

attacks: setup ## Attack vanilla MXNet and Holdfast, and compare (needs root; minutes)
	@.venv/bin/python -m tests.attacks

boundary: setup ## Take each security-group rule away and scan every port; write docs/evidence/ (needs root; minutes)
	@.venv/bin/python -m tests.boundary

bench: setup ## Measure what the wire costs, against vanilla MXNet (minutes, root)
	@PYTHONPATH=. .venv/bin/python -m benchmarks.wire $(BENCH)

lint: .venv/.ready ## Check style and types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@cd constructs/holdfast/functions/enrolment && MYPYPATH=. $(CURDIR)/.venv/bin/mypy --strict \
	  --cache-dir $(CURDIR)/.mypy_cache *.py
	@if command -v shellcheck >/dev/null; then \
	  shellcheck .ci/run local/*.sh node/*.sh node/units/*.sh constructs/holdfast/training/*.sh; fi

lock: ## Renew the locked versions and hashes (needs uv)
	@for f in requirements node/requirements local/requirements constructs/holdfast/functions/enrolment/requirements; do \
	  uv pip compile --quiet --upgrade --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	    --no-emit-find-links --output-file $$f.txt $$f.in; done

clean: ## Remove everything that was installed or built here
	@rm -rf .venv .venv-node .venv-aws node_modules .build cdk.out .mypy_cache .pytest_cache .ruff_cache
