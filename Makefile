PYTHON ?= python3
SEED ?= 0
BASE ?= origin/main
VENV := .venv
BIN := $(VENV)/bin
SIM := $(VENV)/.sim
DEV := $(VENV)/.dev
C := $(wildcard server/umbel_server/aggregation/*.c simulations/umbel_sim/engines/native/*.[ch])
# Without --no-compile a tenth of the folder is bytecode that nothing runs; Python writes what it needs.
# A line every ten seconds, since pip says nothing while it unpacks.
define install
@( while sleep 10 && kill -0 $$$$ 2>/dev/null; do echo "... $$(du -sm $(VENV) | cut -f1) MB of about $(2) are in $(VENV)"; done ) & \
	trap "kill $$! 2>/dev/null" EXIT; \
	$(BIN)/pip install --disable-pip-version-check --no-compile -c constraints.txt -e '.[$(1)]'
endef

.DEFAULT_GOAL := help
# A target with a sentence behind ## is in `make help`, and is no file.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' $(MAKEFILE_LIST))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(DEV) ## install Umbel and what its tests need into .venv

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Umbel needs Python 3.11 or newer; set PYTHON=python3.x"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(SIM): $(VENV)/bin/python pyproject.toml constraints.txt $(C)
	@echo "Installing Umbel, TensorFlow and Flower into $(VENV): 0.6 GB to download, 1.8 GB on disk."
	$(call install,sim,1800)
	@touch $@

$(DEV): $(SIM)
	@echo "Installing what the tests need besides: 0.2 GB to download, 0.7 GB on disk."
	$(call install,dev,2500)
	@touch $@

demo: $(SIM) ## train, ship and use a model on eight real agents, on this machine
	$(BIN)/umbel demo $(ARGS)

unit: install ## run the unit tests: no TensorFlow, no process, no server
	$(BIN)/pytest -p no:schemathesis tests/unit $(ARGS)

affected: install ## run the tests of what was changed since BASE, and of what imports it
	$(BIN)/pytest -n 2 --dist worksteal -m 'not long and not serial' $(ARGS) $$($(BIN)/python -m tests.affected $(BASE))

test: install ## run tests of every part
	$(BIN)/pytest -n 2 --dist worksteal -m 'not long and not serial' $(ARGS)
	$(BIN)/pytest -m 'serial and not long' $(ARGS)

test-all: test ## run all tests but those on emulated machines
	$(BIN)/pytest -n 2 --dist worksteal -m 'long and not serial and not arm' $(ARGS)
	$(BIN)/pytest -m 'long and serial' $(ARGS)

arm: install ## run the agent, plans and releases on emulated ARM machines
	$(BIN)/python -m tests.arm.roots
	$(BIN)/pytest -n 2 -m arm tests/arm $(ARGS)

models: install ## compile and train every reference model
	UMBEL_MODELS=all $(BIN)/pytest -n 2 tests/contract/server/compiler/test_reference_models.py $(ARGS)

fuzz: install ## try properties with new random examples, and feed random bytes to the parsers
	$(BIN)/pytest -n 2 -m hypothesis --hypothesis-profile random
	$(BIN)/python -m tests.security.fuzz $(ARGS)

faults: install ## kill and cut processes by seeded schedules; SEED=N
	$(BIN)/python -m tests.faults.matrix --seed $(SEED) $(ARGS)

check: install ## lint, format, types and import contracts, as CI does
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install ## measure the latency of a round
	$(BIN)/python simulations/benchmarks/round_latency.py $(ARGS)

bench-memory: install ## measure the memory of an agent, beside stock Flower's
	$(BIN)/python simulations/benchmarks/agent_memory.py $(ARGS)

bench-step: install ## measure a training step on a device
	$(BIN)/python simulations/benchmarks/device_step.py $(ARGS)

bench-fold: install ## measure folding updates
	$(BIN)/python simulations/benchmarks/aggregation.py $(ARGS)

bench-round: install ## measure a round of many devices
	$(BIN)/python simulations/benchmarks/fleet_round.py $(ARGS)

bench-enrol: install ## measure the enrolment of devices
	$(BIN)/python simulations/benchmarks/enrolment.py $(ARGS)

bench-sign: install ## measure signing and sealing
	$(BIN)/python simulations/benchmarks/signing.py $(ARGS)

bench-sim: install ## measure simulations, beside other simulators
	$(BIN)/python simulations/benchmarks/simulation.py $(ARGS)

format: install ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## build the documentation as a site in build/site
	$(BIN)/python -m mkdocs build --strict $(ARGS)

build: install ## make the distributions in dist/, install each in a fresh environment, and try it
	$(BIN)/python -m tests.release.build $(ARGS)

bounds: install ## try the lowest and the highest allowed versions of the dependencies
	$(BIN)/python -m tests.release.bounds $(ARGS)

clean: ## remove the environment and what was built
	rm -rf $(VENV) .cache build dist
