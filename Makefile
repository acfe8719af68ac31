# `make up` runs Wardline, `make test` tests it; both set up what they need in .venv first.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

# the first Python that is new enough; choose another with `make PYTHON=...`
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.wardline-set-up
KERNELS := $(wildcard ext/*.pyx ext/*.pxd ext/_build.py)
ARGS ?=
# test processes: most tests wait for processes of their own more than they compute
JOBS ?= 3

.PHONY: help up demo setup test lint soak kafka bench clean

help:
	@echo 'make up      set up, then run everything on this machine (ARGS="--home DIR" passes options on)'
	@echo 'make demo    an agent is turned, refused, detected and revoked, in about a minute (in WARDLINE_HOME when set)'
	@echo 'make setup   only set up: .venv/bin/wardline'
	@echo 'make test    lint, types and tests, under 15 minutes'
	@echo 'make soak    the long tests'
	@echo 'make kafka   a single-node Apache Kafka on 127.0.0.1:9092 (needs Java 17 and Maven)'
	@echo 'make bench   the benchmarks'
	@echo 'make clean   remove what was built here (no home, no record)'

# on a terminal it gets a job of its own (set -m), so that Ctrl-C reaches it alone: make would die of it, and not exit with 0
up: setup
	@if [ -t 0 ]; then set -m; WARDLINE_PARENT=$$$$ $(BIN)/wardline up $(ARGS); else exec $(BIN)/wardline up $(ARGS); fi

demo: setup
	@if [ -t 0 ]; then set -m; WARDLINE_PARENT=$$$$ $(BIN)/wardline demo $(ARGS); else exec $(BIN)/wardline demo $(ARGS); fi

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml $(KERNELS)
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "wardline: needs Python 3.11 or newer, found $$("$(or $(PYTHON),python3)" --version 2>/dev/null || echo none); name one with: make PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@for tool in gcc g++; do command -v $$tool >/dev/null || { \
	  echo "wardline: needs $$tool to compile its kernels (Debian: apt install build-essential)" >&2; exit 2; }; done
	@"$(PYTHON)" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || { \
	  echo "wardline: needs Python's headers to compile its kernels (Debian: apt install python3-dev)" >&2; exit 2; }
	@[ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "wardline: $(PYTHON) cannot make an environment (Debian: apt install python3-venv)" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# the tests on a real Kafka run where Java and Maven are; its jars are fetched here, not in the middle of a test
# files go in their own order, those with the longest tests (tests/integration) first: short ones fill the gaps at the end
test: lint
	@if command -v java >/dev/null && command -v mvn >/dev/null; then $(BIN)/python deploy/kafka/run.py --fetch; fi
	$(BIN)/python -m pytest -m "not soak" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

soak: setup
	@if command -v java >/dev/null && command -v mvn >/dev/null; then $(BIN)/python deploy/kafka/run.py --fetch; fi
	$(BIN)/python -m pytest -m soak $(ARGS)

kafka:
	@exec python3 deploy/kafka/run.py $(ARGS)

bench: setup
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf build dist *.egg-info .cache .coverage coverage.json .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)
	find ext \( -name '*.c' -o -name '*.cpp' -o -name '*.so' -o -name '*.html' \) -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
