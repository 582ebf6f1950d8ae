# What a newcomer types. Everything runs in .venv, which `make venv` installs from requirements.lock, hashes checked.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The first Python on this machine that is new enough.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.PHONY: help venv demo test e2e bench faults soak reliability lint format docs lock clean

help:
	@echo "make demo    see it work: a daemon on a temporary folder, a sample, a few queries"
	@echo "make test    lint, types and all tests; needs no network and no services"
	@echo "make e2e     real processes killed, and a real S3-compatible server"
	@echo "make bench   throughput, latency and commit cost on two cores"
	@echo "make faults  simulation, broken rules, crash matrix, kills, fuzzing, soak and chaos at full size (hours)"
	@echo "make soak    load and trouble for MINUTES=3, and what stays bounded"
	@echo "make reliability  take the figures of make faults into docs/reliability.md"
	@echo "make lint    ruff and mypy only"
	@echo "make docs    write the references under docs/ from the code"

venv: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "dolake needs Python 3.11 or newer; set PYTHON=/path/to/python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: venv
	@$(BIN)/dolake demo

test: lint
	$(BIN)/python -m pytest tests -n 2 --dist loadfile

e2e: venv
	$(BIN)/python -m pytest e2e

bench: venv
	$(BIN)/python -m bench

# Each family leaves its figures in build/faults; `make reliability` takes them into docs/reliability.md.
FAULTS := build/faults

faults: venv
	$(BIN)/python -m tests.simulation --seeds 0..50000 --jobs 2 --json $(FAULTS)/simulation.json
	$(BIN)/python -m tests.simulation --seeds 50000..60000 --set short=False --jobs 2 --json $(FAULTS)/simulation-long.json
	$(BIN)/python -m tests.simulation --mutants --json $(FAULTS)/mutants.json
	$(BIN)/python -m tests.simulation.matrix --json $(FAULTS)/matrix.json
	$(BIN)/python -m tests.simulation.nth --json $(FAULTS)/nth.json
	$(BIN)/python -m tests.kills --kills 2000 --json $(FAULTS)/kills.json
	$(BIN)/python -m tests.verify.bits --json $(FAULTS)/bits.json
	$(BIN)/python -m tests.fuzz --seconds 60 --json $(FAULTS)/fuzz.json
	$(BIN)/python -m tests.soak --minutes 3 --json $(FAULTS)/soak.json
	$(BIN)/python -m tests.soak --chaos --seeds 5 --minutes 3 --store s3 --json $(FAULTS)/chaos.json
	$(BIN)/python -m tests.suite --times 5 --json $(FAULTS)/suite.json
	E2E_ROUNDS=20 $(BIN)/python -m pytest tests/test_real_flushes.py e2e

soak: venv
	$(BIN)/python -m tests.soak --minutes $(or $(MINUTES),3)

reliability: venv
	$(BIN)/python -m tests.reliability --write docs/reliability.md

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: venv
	@$(BIN)/dolake docs write docs

# The options keep this machine's index and wheel folders out of the file.
lock: venv
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --strip-extras --generate-hashes --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links \
		--extra test --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
