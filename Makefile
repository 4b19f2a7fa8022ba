# Two commands matter: `make demo` and `make test`. Both install what they need first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || echo python3)
PIP := -m pip install --quiet --disable-pip-version-check --require-hashes
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help setup demo test lint lock clean

help: ## Show what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: .build/tools .venv/.ready .venv-node/.ready .venv-aws/.ready node_modules/.ready ## Install everything into this directory

.build/tools: local/system-packages.sh
	@bash local/system-packages.sh "$(PYTHON)"
	@mkdir -p .build && touch $@

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
