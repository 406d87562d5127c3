# make run: set up, fetch, train, leaderboard.   make test: set up, check, test.
# PYTHON may name another interpreter, 3.11 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Python keeps the byte-code of what it imports, also where the environment says otherwise: `setup` compiles nothing.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup run test check-types run-tests test-long up down lock bench audit clean

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(READY) ## install every pinned version into .venv

# pip, not uv: it finds a CPU build of PyTorch that lies on disk. The pip that comes with Python 3.11 takes twice as long.
# The lock is complete, so nothing has to be resolved. Only a CUDA build of PyTorch needs more: packages that it names itself,
# which the last step installs. Nothing is compiled: that takes longer than all the rest, and most is never imported.
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Recast needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade 'pip>=26'
	$(PIP_INSTALL) --no-deps -r requirements.lock
	$(PIP_INSTALL) --no-build-isolation --editable '.[cluster,dev]'
	touch $(READY)

run: setup ## train the grid on the Jena weather data (JENA_ARCHIVE names a local archive) and show the leaderboard
	recast run --fallback nyc

test: setup ## lint, check types and imports, and test
	ruff check .
	ruff format --check .
	lint-imports --no-logo
	$(MAKE) --no-print-directory --jobs=2 run-tests check-types

# Beside the tests, which often wait for servers and use two thirds of two processors.
check-types:
	mypy

run-tests:
	pytest

test-long: setup ## the tests that take minutes each: repeated kills, outages, a year of retraining
	pytest -m long

up: setup ## start Prefect's and MLflow's servers and a worker in the background, on loopback (PROFILE=servers: on PostgreSQL and S3)
	recast up $(if $(PROFILE),--profile $(PROFILE))

down: setup ## stop them
	recast down

bench: setup ## measure speed against peers; results in benchmarks/results
	python -m benchmarks

lock: setup ## pin every version again
	pip install --quiet uv
	python -m infra.requirements

audit: ## known flaws of what the lock pins, a bill of materials in bom.json, and the rules of Docker, compose and Kubernetes
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check -r infra/audit-requirements.txt
	$(VENV)/audit/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-file bom.json
	$(VENV)/audit/bin/hadolint infra/Dockerfile
	$(VENV)/audit/bin/check-jsonschema --builtin-schema vendor.compose-spec infra/compose.yaml
	find infra/k8s -name '*.yaml' ! -name kustomization.yaml ! -name ray.yaml -exec $(VENV)/audit/bin/kubernetes-validate --strict {} +
	$(VENV)/audit/bin/pip-audit --strict --requirement requirements.lock --no-deps --disable-pip

clean: ## remove the environment and caches, but no data, trials or runs
	rm -rf $(VENV) .import_linter_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
