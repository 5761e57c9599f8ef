# The project's commands. `make demo` and `make test` do all their own set-up.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; raise SystemExit(not (3,11) <= sys.version_info < (3,14))' 2>/dev/null && echo $$p && break; done)
# State of this checkout stays in this checkout, so that two of them never meet.
export KB_HOME ?= $(CURDIR)/.kb
export DAGSTER_HOME ?= $(KB_HOME)/dagster

.PHONY: help setup demo test test-slow test-all app up dagster lint types lock lock-check bench clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: .venv/.installed ## the project's own environment, from the lock

.venv/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed and none was found" >&2; exit 1; }
	@test -x .venv/bin/python || "$(PYTHON)" -m venv .venv
	@test -x .venv/bin/uv || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	@echo "installing the locked packages (the first time fetches some 5 GB, torch for the most part)"
	@VIRTUAL_ENV="$(CURDIR)/.venv" .venv/bin/uv pip install --quiet --require-hashes -r requirements.lock
	@VIRTUAL_ENV="$(CURDIR)/.venv" .venv/bin/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch .venv/.installed

demo: setup ## the main job over the sample corpus, and three questions answered
	@.venv/bin/kb demo

test: setup ## all tests but the slow ones
	@.venv/bin/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: setup ## the slow tests alone
	@.venv/bin/python -m pytest -m slow

test-all: setup ## the slow ones too
	@.venv/bin/python -m pytest

app: setup ## the app, on 127.0.0.1
	@.venv/bin/kb app

up: setup ## everything served: PostgreSQL, Dagster's UI and daemon, the app
	@exec .venv/bin/kb up

dagster: setup ## Dagster's UI and daemon over this checkout's state
	@.venv/bin/kb init --quiet && .venv/bin/dagster dev -m kb_platform.definitions \
		-h "$${KB_DAGSTER_HOST:-127.0.0.1}" -p "$${KB_DAGSTER_PORT:-3000}"

lint: setup ## style and the direction of imports
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/lint-imports

types: setup ## strict types
	@.venv/bin/basedpyright

lock: setup ## resolve anew what pyproject.toml allows
	@.venv/bin/uv pip compile --quiet --universal --generate-hashes --no-header --extra dev pyproject.toml -o requirements.lock

lock-check: setup ## fail when the lock no longer fits pyproject.toml
	@cp requirements.lock .venv/lock-check.txt
	@.venv/bin/uv pip compile --quiet --universal --generate-hashes --no-header --extra dev pyproject.toml -o .venv/lock-check.txt
	@diff -q requirements.lock .venv/lock-check.txt >/dev/null || { echo "requirements.lock is stale: run make lock" >&2; exit 1; }

bench: setup ## the short forms of all benchmarks
	@status=0; for file in $$(grep -l __main__ benchmarks/*.py); do \
		echo "== $$file"; .venv/bin/python "$$file" || status=1; done; exit $$status

clean: ## stop the embedded server and remove this checkout's state
	@if [ -x .venv/bin/kb ]; then .venv/bin/kb database stop || true; fi
	@rm -rf "$(KB_HOME)"
