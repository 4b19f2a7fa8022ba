# Two commands matter: `make demo` and `make test`. Both install what they need first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || echo python3)
# --no-deps: the locks are complete, and a resolver would look at releases that are newer than they are.
PIP := -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help setup tools demo test boot-test gpu-test attacks boundary permissions mutants bench lint lock clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

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

# MXNet's CUDA build, with a driver that has no device: what is not a kernel can be tested without a GPU. 2 GB.
.venv-gpu/.ready: node/requirements-gpu.txt tests/node/engine/gpu/libcuda.c
	@echo "==> MXNet's CUDA build and CUDA's libraries into .venv-gpu"
	@$(PYTHON) -m venv .venv-gpu
	@.venv-gpu/bin/python $(PIP) -r node/requirements-gpu.txt
	@PYTHONPATH=node .venv-gpu/bin/python -m holdfast_node.engines.mxnet.cuda
	@cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o .venv-gpu/lib/python3.11/site-packages/mxnet/libcuda.so.1 \
	  tests/node/engine/gpu/libcuda.c
	@touch $@

node_modules/.ready: package-lock.json
	@echo "==> the CDK command line into node_modules"
	@npm ci --no-audit --no-fund --loglevel=error
	@touch $@

demo: setup ## Deploy, train, verify, report, tear down: everything on this machine
	@.venv/bin/holdfast local demo

test: setup lint ## Run every check and test
	@.venv/bin/python -m pytest

gpu-test: setup .venv-gpu/.ready ## Test the guard on MXNet's CUDA build, which needs no GPU (2 GB, minutes)
	@HOLDFAST_TEST_ENVIRONMENT=.venv-gpu .venv/bin/python -m pytest tests/node/engine

boot-test: setup ## Boot the templates' nodes, train, reboot one, show what fails, write docs/evidence/ (root; 20 min)
	@CI=true .venv/bin/python -m pytest tests/boot
	@for evidence in tests.node.units.scores tests.boot.reach tests.boot tests.boundary; do \
	  .venv/bin/python -m $$evidence; done

attacks: setup ## Attack vanilla MXNet and Holdfast, and compare (needs root; minutes)
	@.venv/bin/python -m tests.attacks

boundary: setup ## Take each security-group rule away and scan every port; write docs/evidence/ (needs root; minutes)
	@.venv/bin/python -m tests.boundary

permissions: setup ## Show that each permission is used, and write docs/evidence/permissions.md (needs root; minutes)
	@CI=true .venv/bin/python -m tests.permissions

mutants: .venv/.ready ## Weaken the templates one property at a time; see which gates notice (minutes)
	@.venv/bin/python -m tests.mutants

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

lock: .venv/.ready ## Renew the locked versions and hashes (needs uv, and downloads the GPU nodes' 2 GB)
	@for f in requirements node/requirements node/requirements-gpu local/requirements \
	  constructs/holdfast/functions/enrolment/requirements; do \
	  uv pip compile --quiet --upgrade --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	    --no-emit-find-links --output-file $$f.txt $$f.in; done
	@PYTHONPATH=constructs:node .venv/bin/python -m holdfast.wheels node/requirements-gpu.txt .build --record

clean: ## Remove everything that was installed or built here
	@rm -rf .venv .venv-node .venv-aws .venv-gpu node_modules .build cdk.out .mypy_cache .pytest_cache .ruff_cache
