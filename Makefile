# Everything is done in .venv, which is made once and brought up to date when pyproject.toml changes.
# Needs make and Python 3.11 or newer; `make PYTHON=/path/to/python demo` says which one.

VENV := .venv
BACKEND := .venv-backend
PEERS := .venv-peers
NPM := .npm-peers
PLOTS := .venv-plots
SBOM := .venv-sbom
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: help demo test check coverage bench bench-cpu bench-scale chaos soak e2e mutants torture pictures lock sbom clean

help:
	@echo "make demo     run a workflow over two worker processes, with a Redis of its own"
	@echo "make test     run the tests, also end to end with real servers and processes, in minutes"
	@echo "make check    run ruff, mypy, pyright, import-linter and the quick tests"
	@echo "make coverage run all tests and show which lines and branches none of them reached"
	@echo "make bench    measure throughput and latency, side by side with RQ, Celery, Dramatiq, DBOS,"
	@echo "              Absurd and, where node is found, BullMQ, which it installs"
	@echo "make bench-cpu count what one node costs: CPU by process and function, commits, WAL, Redis commands"
	@echo "make bench-scale measure how throughput, memory and bytes grow, and draw it; ARGS=--write for docs/performance.md"
	@echo "make chaos    run real workers while everything around them is killed, for minutes, and count what was lost"
	@echo "make soak     run workers for half an hour under load and faults, and show that nothing grows"
	@echo "make e2e      send a trace to a real backend and read it back; installs Phoenix, 850 MB"
	@echo "make mutants  break stores and engine on purpose, and see that the tests find it"
	@echo "make torture  run what make test leaves out: the behaviours over the other stores, the mutants, thousands of"
	@echo "              drawn workflows and random commands, every crash point; takes hours"
	@echo "make pictures draw the terminal pictures of docs/ again, from a record of the demo"
	@echo "make lock     bring uv.lock up to date with pyproject.toml; make lock ARGS=--upgrade: with PyPI, too"
	@echo "make sbom     write sbom.cdx.json: what an installation with all extras consists of, with licences (CycloneDX)"
	@echo "make clean    remove .venv, the demo's data and what the tools left"

demo: $(VENV)/has-demo
	@$(BIN)/python examples/census.py

test: $(VENV)/has-test
	@$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder $(ARGS)

check: $(VENV)/has-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@command -v node >/dev/null || $(PIP) install "pyright[nodejs]"
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/python -m pytest -q -m "not services" --ignore=tests/e2e --ignore=tests/faults $(ARGS)

coverage: $(VENV)/has-dev
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

bench: $(VENV)/has-dev
	@$(BIN)/python bench/run.py $(ARGS)

bench-cpu: $(VENV)/has-dev
	@$(BIN)/python bench/cpu.py $(ARGS)

bench-scale: $(VENV)/has-dev
	@$(BIN)/python bench/scale.py $(ARGS)

chaos: $(VENV)/has-test
	@cd tests && ../$(BIN)/python -m chaos $(ARGS)

soak: $(VENV)/has-test
	@cd tests && ../$(BIN)/python -m chaos.soak $(ARGS)

e2e: $(VENV)/has-test $(BACKEND)/bin/phoenix
	@SPANLOOM_PHOENIX=$(abspath $(BACKEND)/bin/phoenix) $(BIN)/python -m pytest -q -m backend --timeout=600 $(ARGS)

mutants: $(VENV)/has-test
	@$(BIN)/python -m pytest -q -m "torture or not torture" tests/stores/test_mutants.py tests/model/test_model_mutants.py \
	    tests/model/test_twin_mutants.py tests/differential/test_engine_mutants.py $(ARGS)

torture: $(VENV)/has-test
	@$(BIN)/python -m pytest -q -m torture --timeout=3600 $(ARGS)

pictures: $(VENV)/has-dev
	@$(BIN)/python docs/pictures.py $(ARGS)

# Of PyPI, whatever indexes this machine is set to: the file is for everyone.
lock: $(BIN)/uv
	@env -u PIP_FIND_LINKS -u UV_FIND_LINKS $(BIN)/uv lock --no-config --default-index https://pypi.org/simple $(ARGS)

# An installation by uv.lock of its own, without what tests and checks need.
sbom: $(BIN)/uv
	@UV_PROJECT_ENVIRONMENT=$(SBOM) $(BIN)/uv sync --quiet --locked --no-config --no-editable --extra postgres --extra otlp \
	    --extra otlp-grpc --extra prometheus
	@$(BIN)/uv tool run --quiet --no-config --from 'cyclonedx-bom>=7,<8' cyclonedx-py environment --pyproject pyproject.toml \
	    --output-reproducible --output-file sbom.cdx.json $(SBOM)/bin/python
	@echo "sbom.cdx.json has what spanloom consists of"

$(BIN)/uv: | $(BIN)/python
	@$(PIP) install uv

$(BACKEND)/bin/phoenix: | $(BIN)/python
	@echo "Installing arize-phoenix into $(BACKEND)"
	@$(BIN)/python -m venv $(BACKEND)
	@$(BACKEND)/bin/python -m pip --quiet --disable-pip-version-check install "arize-phoenix>=20"

# What `make bench` runs beside us, each apart: what one needs may contradict another, and us.
$(PEERS)/%/ready: bench/peers/%.txt | $(BIN)/python
	@echo "Installing $* into $(@D)" >&2
	@rm -rf $(@D)
	@$(BIN)/python -m venv $(@D)
	@$(@D)/bin/python -m pip --quiet --disable-pip-version-check install --requirement $<
	@touch $@

$(NPM)/ready: bench/peers/package.json
	@echo "Installing BullMQ into $(NPM)" >&2
	@mkdir -p $(NPM)
	@cp $< $(NPM)
	@npm install --prefix $(NPM) --silent --no-audit --no-fund
	@touch $@

# What draws the pictures of `make bench-scale ARGS=--write`: of one version, so that they change with the figures alone.
$(PLOTS)/ready: bench/plots.txt | $(BIN)/python
	@echo "Installing matplotlib into $(PLOTS)" >&2
	@rm -rf $(PLOTS)
	@$(BIN)/python -m venv $(PLOTS)
	@$(PLOTS)/bin/python -m pip --quiet --disable-pip-version-check install --requirement $<
	@touch $@

clean:
	@rm -rf $(VENV) $(BACKEND) $(PEERS) $(NPM) $(PLOTS) $(SBOM) sbom.cdx.json .demo dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*
	@find engine stores worker tests bench docs examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/has-demo: EXTRAS := embedded,postgres,otlp
$(VENV)/has-test: EXTRAS := test
$(VENV)/has-dev: EXTRAS := dev
$(VENV)/has-demo $(VENV)/has-test $(VENV)/has-dev: pyproject.toml | $(BIN)/python
	@echo "Installing spanloom[$(EXTRAS)] into $(VENV)"
	@$(PIP) install -e ".[$(EXTRAS)]"
	@touch $@ $(if $(filter dev,$(EXTRAS)),$(VENV)/has-test)

# A name that is found may still not run (a pyenv shim, a Python without venv): the first one that works is taken.
$(BIN)/python:
	@for python in $(PYTHON) python3.14 python3.13 python3.12 python3.11 python3; do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        exec $$python -m venv $(VENV); \
	    fi; \
	done; \
	echo "Spanloom needs Python 3.11 or newer with its venv module; install one," >&2; \
	echo "or say where it is: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; \
	exit 1
