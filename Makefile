# make run: set up, fetch, train, leaderboard.   make test: set up, check, test.
# PYTHON may name another interpreter, 3.11 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup run test check up down lock bench audit clean

help: ## show this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(READY) ## install every pinned version into .venv

# pip, not uv: it finds a CPU build of PyTorch that lies on disk.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Recast needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(READY)

run: setup ## train the grid on the Jena weather data (JENA_ARCHIVE names a local archive) and show the leaderboard
	recast run --fallback nyc

test: setup ## lint, check types and imports, and test
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-logo
	pytest

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
