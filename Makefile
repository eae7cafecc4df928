PYTHON ?= python3
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
C := $(wildcard server/umbel_server/aggregation/*.c simulations/umbel_sim/engines/native/*.[ch])

.PHONY: install demo test models fuzz faults check bench bench-step bench-fold bench-round bench-enrol bench-sign bench-sim clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(C)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Umbel needs Python 3.11 or newer; set PYTHON=python3.x"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/umbel demo $(ARGS)

test: install
	$(BIN)/pytest -n 2 --dist worksteal -m 'not serial' $(ARGS)
	$(BIN)/pytest -m serial $(ARGS)

models: install
	UMBEL_MODELS=all $(BIN)/pytest -n 2 tests/contract/server/compiler/test_reference_models.py $(ARGS)

fuzz: install
	$(BIN)/python -m tests.security.fuzz $(ARGS)

faults: install
	$(BIN)/python -m tests.faults.matrix --seed $(SEED) $(ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/python simulations/benchmarks/round_latency.py $(ARGS)

bench-step: install
	$(BIN)/python simulations/benchmarks/device_step.py $(ARGS)

bench-fold: install
	$(BIN)/python simulations/benchmarks/aggregation.py $(ARGS)

bench-round: install
	$(BIN)/python simulations/benchmarks/fleet_round.py $(ARGS)

bench-enrol: install
	$(BIN)/python simulations/benchmarks/enrolment.py $(ARGS)

bench-sign: install
	$(BIN)/python simulations/benchmarks/signing.py $(ARGS)

bench-sim: install
	$(BIN)/python simulations/benchmarks/simulation.py $(ARGS)

clean:
	rm -rf $(VENV) build dist
