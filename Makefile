# Needs make and Python >= 3.11 with pip; everything else goes to virtual environments inside the repository.

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The Python of .venv; `make test` tries the machine's other ones, too.
PYTHON ?= $(shell tests/engines/pythons.sh | sed -n '1s/[^ ]* //p')

PIP := bin/python -m pip --quiet
# What is tested is the wheel, so the folders of the packages must not be on sys.path.  The sample is in no wheel: it has a
# folder of its own there.
INSTALLED := IDEMPOTENCY_TEST_INSTALLED=1 PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/build/sample
SOURCES := pyproject.toml README.md LICENSE $(shell find idempotency persistence -name '*.py' -o -name py.typed)

# What runs on other Pythons and on the lowest versions of the dependencies.  A table's layout and another engine show the same on
# each of them: the stores in memory, on a plain table of DynamoDB Local and on one Valkey will do.
CORE_TESTS := tests/unit tests/conformance tests/behaviour --ignore=tests/conformance/test_cache_races.py \
	-k 'not dynamodb-odd-names and not dynamodb-composite and not moto and not cluster and not tls and not valkey-odd-names'
OTHER_PYTHONS = $(filter-out $(shell cat .venv/python),$(shell tests/engines/pythons.sh | cut -d ' ' -f 1))
# They compare with what Powertools does today, or need the durable functions SDK and with it a newer boto3.
NOT_ON_LOWEST := tests/unit/test_json.py tests/unit/test_key.py tests/behaviour/test_durable_sdk.py \
	tests/conformance/test_exchange.py tests/conformance/test_cache_exchange.py
test-on-lowest: CORE_TESTS += $(NOT_ON_LOWEST:%=--ignore=%)
# They are about the clients and servers of caches, which are the same on each Python.
NOT_ON_OTHERS := $(addprefix tests/conformance/test_,cache.py cache_clients.py cache_exchange.py plain_clients.py)
test-on-3.%: CORE_TESTS += $(NOT_ON_OTHERS:%=--ignore=%)

# They take long and reach no line that other tests do not: without coverage they take half the time.
STRESS_TESTS := tests/model tests/e2e tests/conformance/test_races.py tests/conformance/test_cache_races.py \
	$(addprefix tests/fault/test_,chaos.py cache_chaos.py cache_servers.py transfers.py crashes.py hidden_retries.py side_by_side.py)

# Tests wait for engines half of the time.  A make that can shows the output of each run in one piece.
PARALLEL = $(MAKE) --no-print-directory --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: help test test-all test-unit test-pythons test-lowest lint format demo engines clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

test: lint engines  ## Everything: lint, all tests, coverage, other Pythons, lowest versions
	$(PARALLEL) test-covered test-stress test-lowest $(OTHER_PYTHONS:%=test-on-%)

test-all: test-covered test-stress  ## All tests, on one Python

test-covered: .venv/wheel .venv/tests engines  ## All but the long ones, with coverage
	$(INSTALLED) .venv/bin/pytest $(STRESS_TESTS:%=--ignore=%) --cov --cov-report=term-missing

test-stress: .venv/wheel .venv/tests engines  ## The long ones: random faults, races, interleavings, the demo
	$(INSTALLED) .venv/bin/pytest -p no:cacheprovider $(STRESS_TESTS)

test-unit: .venv/wheel .venv/tests  ## The fast ones, which need no engine
	$(INSTALLED) .venv/bin/pytest tests/unit tests/behaviour

test-pythons: .venv/python  ## The core tests on every other supported Python of this machine
	$(PARALLEL) engines $(OTHER_PYTHONS:%=test-on-%)

test-lowest: test-on-lowest  ## The core tests on the lowest versions of the dependencies

test-on-%: .venvs/%/wheel engines
	$(INSTALLED) .venvs/$*/bin/pytest -p no:cacheprovider $(CORE_TESTS)

lint: .venv/wheel .venv/tests  ## Style, types and the import rules
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/tests  ## Repair what ruff can
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

demo: .venv/wheel  ## The sample's functions on embedded servers
	@$(INSTALLED) .venv/bin/python -m sample.demo

engines: .engines/ready  ## Fetch DynamoDB Local and Redis; tests that need them are skipped where that fails

clean:  ## Remove everything that was made here
	rm -rf .venv .venvs .engines build dist .coverage .*_cache

# The environments.  Each file below is the mark that a step was done, and is newer than what the step depends on.

.venv/python:
	@test -n "$(PYTHON)" || { echo "There is no Python >= 3.11 with venv and pip here." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -c 'import sys; print("{}.{}".format(*sys.version_info))' > $@

.venv/demo: tests/requirements-demo.txt .venv/python
	.venv/$(PIP) install -r $<
	mkdir -p build/sample && ln -sfn ../../sample build/sample/sample
	@touch $@

.venv/tests: tests/requirements.txt tests/requirements-lint.txt .venv/demo
	.venv/$(PIP) install -r tests/requirements.txt -r tests/requirements-lint.txt
	@touch $@

.venvs/lowest/tests: tests/requirements-lowest.txt .venv/python
	.venv/bin/python -m venv .venvs/lowest
	.venvs/lowest/$(PIP) install -r $<
	@touch $@

.venvs/%/tests: tests/requirements.txt tests/requirements-demo.txt
	$$(tests/engines/pythons.sh $*) -m venv .venvs/$*
	.venvs/$*/$(PIP) install -r $<
	@touch $@

build/wheel: $(SOURCES) .venv/demo
	rm -rf dist
	.venv/$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .
	@touch $@

.venv/wheel: build/wheel .venv/demo
	.venv/$(PIP) --quiet uninstall --yes lambda-idempotency
	.venv/$(PIP) install dist/*.whl
	@touch $@

.venvs/%/wheel: build/wheel .venvs/%/tests
	.venvs/$*/$(PIP) --quiet uninstall --yes lambda-idempotency
	.venvs/$*/$(PIP) install dist/*.whl
	.venvs/$*/$(PIP) check
	@touch $@

.engines/ready: tests/engines/package-lock.json tests/engines/fetch.py tests/requirements-java.txt tests/requirements-node.txt .venv/python
	PYTHONPATH=tests .venv/bin/python -m engines.fetch


# Made on the way to test-on-%, and kept.
.PRECIOUS: .venvs/%/tests .venvs/%/wheel
