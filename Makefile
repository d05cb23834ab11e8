# Needs make and Python >= 3.11 with pip; everything else goes to virtual environments inside the repository.

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Half of what is installed is never imported: Python compiles what is, instead of pip, and keeps it for the next process.
export PYTHONDONTWRITEBYTECODE :=
# The Python of .venv; `make test` tries the machine's other ones, too.  To ask them all takes a second: the answer is kept.
PYTHON ?= $(eval PYTHON := $(shell tests/engines/pythons.sh | sed -n '1s/[^ ]* //p'))$(PYTHON)

PIP := bin/python -m pip --quiet
# What is tested is the wheel, so the folders of the packages must not be on sys.path.  The sample is in no wheel: it has a
# folder of its own there.
INSTALLED := IDEMPOTENCY_TEST_INSTALLED=1 PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/build/sample
SOURCES := pyproject.toml README.md LICENSE $(shell find idempotency persistence -name '*.py' -o -name py.typed)

# What runs on other Pythons and on the lowest versions of the dependencies.  A table's layout, another way to a server and what a
# server decides show the same on each of them.
CORE_TESTS := tests/unit tests/behaviour tests/conformance \
	$(addprefix --ignore=tests/conformance/test_,cache_races.py exchange.py cache_exchange.py)
NOT_CORE := odd-names or moto or cluster or tls or dynamodb-lean
OTHER_PYTHONS = $(eval OTHER_PYTHONS := $(filter-out $(shell cat .venv/python),$(shell tests/engines/pythons.sh | cut -d ' ' -f 1)))$(OTHER_PYTHONS)
# The lowest versions are tried on one of those, so that each Python of a machine is used once; without another one, on ours.
LOWEST_PYTHON = $(firstword $(OTHER_PYTHONS) $(shell cat .venv/python))
# They compare with what Powertools or botocore does today, need the durable functions SDK and with it a newer boto3, ask who wins,
# or are examples, made of what the others show.
NOT_ON_LOWEST := $(addprefix tests/unit/test_,json.py key.py objects.py options.py sigv4.py lean.py lean_settings.py) \
	$(addprefix tests/behaviour/test_,durable_sdk.py worked_examples.py batches.py) tests/conformance/test_races.py
# An old botocore asks for the time in a way that newer Pythons warn of.
test-on-lowest: TOLERATED := -W "ignore:datetime.datetime.utcnow:DeprecationWarning"
test-on-lowest: CORE_TESTS += $(NOT_ON_LOWEST:%=--ignore=%)
# Requests, clients and servers are the same on each Python: there, the stores in memory and in a cache, and the decorators on every
# kind of engine will do, and the races of threads in memory.
NOT_ON_OTHERS := $(addprefix tests/behaviour/test_,worked_examples.py batches.py transactions.py) \
	$(addprefix tests/unit/test_,user_requests.py sdk.py sigv4.py large_results.py) \
	$(addprefix tests/conformance/test_,dynamodb.py transactions.py cache.py cache_clients.py plain_clients.py)
test-on-3.%: CORE_TESTS += $(NOT_ON_OTHERS:%=--ignore=%)
test-on-3.%: NOT_CORE += or (dynamodb and (test_contract or test_leases)) or (test_races and not memory)

# They reach no line that other tests do not: without coverage they take half the time.
STRESS_TESTS := tests/model tests/test_demo.py tests/test_engines.py tests/test_benchmarks.py tests/unit/test_sdk.py \
	$(addprefix tests/behaviour/test_,worked_examples.py on_engines.py batches.py durable.py durable_sdk.py) \
	$(addprefix tests/conformance/test_,contract.py other_ways.py transactions.py cache_exchange.py races.py cache_races.py leases.py \
		lean_answers.py) \
	$(addprefix tests/replication/test_,anomalies.py cache_failover.py strong.py replicas.py)

# The same of the stories of faults, which are as long as all others together.
FAULT_TESTS := $(addprefix tests/fault/test_,chaos.py cache_chaos.py cache_cluster.py cache_servers.py transfers.py crashes.py \
	hidden_retries.py side_by_side.py transactions.py leases.py peer_rows.py concurrency.py large_results.py store_failures.py \
	zombies.py proxy.py resp_proxy.py history.py lean.py deadlines.py)

# Nor do these tests, each of which has many cases or long ones, of files whose others do.
MANY_CASES := \
	tests/bulk/test_copy.py::test_a_record_is_the_same_under_any_names_and_any_key \
	tests/bulk/test_copy.py::test_a_request_has_25_records_at_most \
	tests/bulk/test_copy.py::test_a_request_of_the_largest_records_is_far_from_16_mb \
	tests/bulk/test_copy.py::test_reads_are_consistent \
	tests/bulk/test_resume.py::test_work_goes_on_after_a_page_that_could_not_be_read \
	tests/bulk/test_resume.py::test_work_goes_on_after_a_write_that_failed \
	tests/bulk/test_resume.py::test_work_on_a_partition_goes_on_after_a_write_that_failed \
	tests/bulk/test_sweep.py::test_a_record_that_changed_in_any_way_that_matters_is_not_deleted \
	tests/conformance/test_cache.py::test_a_result_reads_back_as_it_was_given_after_every_script_that_touches_its_record \
	tests/conformance/test_cache.py::test_a_script_decides_and_writes_as_the_rules_do \
	tests/conformance/test_cache_clients.py::test_the_connections_of_a_loop_that_has_ended_are_not_kept \
	tests/fault/test_cache_faults.py::test_a_refusal_for_now_is_asked_again_until_just_before_the_deadline \
	tests/fault/test_cache_faults.py::test_a_write_that_was_not_known_to_be_confirmed_is_confirmed_again \
	tests/fault/test_cache_faults.py::test_no_error_no_note_and_no_log_shows_payload_or_result \
	tests/fault/test_changes.py::test_a_change_that_is_lost_on_its_way_is_sent_again \
	tests/fault/test_changes.py::test_a_counter_equals_the_number_of_its_changes_whatever_is_lost \
	tests/fault/test_changes.py::test_it_is_repeated_until_just_before_the_deadline_and_can_be_repeated_after_it \
	tests/fault/test_lost_answers.py::test_a_claim_is_granted_once \
	tests/fault/test_lost_answers.py::test_a_completion_is_stored_once \
	tests/fault/test_lost_answers.py::test_a_renewal_is_made_again_at_the_next_beat \
	tests/fault/test_lost_answers.py::test_a_release_frees_the_key \
	tests/fault/test_lost_answers.py::test_a_takeover_is_granted_once \
	tests/fault/test_throttling.py::test_a_wish_that_is_no_number_is_ignored \
	tests/replication/test_home_region.py::test_every_operation_goes_to_the_keys_home_region_and_nothing_elsewhere \
	tests/unit/test_json.py::test_random_data_is_hashed_and_stored_from_powertools_very_text \
	tests/unit/test_lean.py::test_a_wrong_clock_is_corrected_once_and_for_all \
	tests/unit/test_lean_transport.py::test_an_answer_is_read_whatever_pieces_it_comes_in \
	tests/unit/test_retries.py::test_a_canceled_transaction_is_for_now_if_every_action_to_blame_is \
	tests/unit/test_retries.py::test_a_canceled_transaction_is_throttled_if_any_action_is \
	tests/unit/test_retries.py::test_the_request_is_sent_until_just_before_the_end_and_never_after_it \
	tests/unit/test_sigv4.py::test_thousands_of_requests_are_signed_as_botocore_signs_them \
	tests/unit/test_user_requests.py::test_a_request_is_the_one_that_boto3s_resources_would_send \
	tests/unit/test_user_requests.py::test_the_users_own_arguments_are_left_as_they_were \
	tests/unit/test_user_requests.py::test_typed_values_mean_what_plain_ones_mean

# They are about template.yaml, and need SAM and its emulator.
STACK_TESTS := $(addprefix tests/e2e/test_,template.py deploy.py emulator.py)

# Tests wait for engines, timeouts and leases: with two at a time, two cores were idle one second in eight.  No more than three: what
# has a timeout needs its time.  A make that can shows the output of each run in one piece.
JOBS := 3
PARALLEL = $(MAKE) --no-print-directory --jobs=$(JOBS) $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: help ci test test-all test-covered test-faults test-stress test-unit test-pythons test-lowest lint format demo bench e2e e2e-stack e2e-runtime aws-smoke engines clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@sed -n 's/^\([a-z0-9-]*\):.*##  *\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

# The longest first, so that none is left to run alone.
TESTS = test-covered test-faults test-stress test-lowest $(patsubst %,test-on-%,$(filter-out $(LOWEST_PYTHON),$(OTHER_PYTHONS))) lint

test: .venv/python  ## Everything: lint, all tests, coverage, other Pythons, lowest versions
	$(PARALLEL) $(TESTS)

# One after another, they would let a core idle at the start of each and at its end.  The demo comes before what only tests need is
# installed beside it.
ci: .venv/python  ## The demo, then test and e2e side by side
	$(PARALLEL) demo engines .venvs/sam/ready .venvs/ministack/ready
	$(PARALLEL) $(wordlist 1,3,$(TESTS)) e2e-stack e2e-runtime $(wordlist 4,9,$(TESTS))

test-all: test-covered test-faults test-stress  ## All tests, on one Python

test-covered: .venv/wheel .venv/tests engines  ## What reaches every line, with coverage
	$(INSTALLED) .venv/bin/pytest --ignore=tests/e2e $(FAULT_TESTS:%=--ignore=%) $(STRESS_TESTS:%=--ignore=%) \
		$(MANY_CASES:%=--deselect=%) --cov --cov-report=term-missing

test-faults: .venv/wheel .venv/tests engines  ## The stories of faults that reach no line of their own, random ones among them
	$(INSTALLED) .venv/bin/pytest -p no:cacheprovider --chaos-attempts=1500 $(FAULT_TESTS)

test-stress: .venv/wheel .venv/tests engines  ## The others: the contract on real engines, races, interleavings
	$(INSTALLED) .venv/bin/pytest -p no:cacheprovider $(STRESS_TESTS) $(MANY_CASES)

test-unit: .venv/wheel .venv/tests  ## The fast ones, which need no engine
	$(INSTALLED) .venv/bin/pytest tests/unit tests/behaviour

test-pythons: .venv/python  ## The core tests on every other supported Python of this machine
	$(PARALLEL) engines $(OTHER_PYTHONS:%=test-on-%)

test-lowest: test-on-lowest  ## The core tests on the lowest versions of the dependencies

test-on-%: .venvs/%/wheel engines
	$(INSTALLED) .venvs/$*/bin/pytest -p no:cacheprovider $(TOLERATED) $(CORE_TESTS) -k 'not ($(NOT_CORE))'

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

bench: .venvs/bench/library .venv/demo engines  ## Compare speed with Powertools and with the least possible; OPTIONS=--quick
	@$(INSTALLED) .venvs/bench/bin/python -m benchmarks $(OPTIONS)

e2e: .venv/python  ## The sample stack: template.yaml, its deployment to an emulator, its functions in Lambda's runtime
	$(PARALLEL) e2e-stack e2e-runtime

e2e-stack: .venv/wheel .venv/tests engines .venvs/sam/ready .venvs/ministack/ready .venvs/runtime/ready build/function
	$(INSTALLED) .venv/bin/pytest -p no:cacheprovider $(STACK_TESTS)

e2e-runtime: .venv/wheel .venv/tests engines .venvs/sam/ready .venvs/runtime/ready build/function
	$(INSTALLED) .venv/bin/pytest -p no:cacheprovider tests/e2e $(STACK_TESTS:%=--ignore=%)

aws-smoke: .venv/demo  ## Check a stack that you deployed, with your credentials: make aws-smoke STACK=idempotent-payments
	@test -n "$(STACK)" || { echo "Say which: make aws-smoke STACK=idempotent-payments" >&2; exit 1; }
	@PYTHONPATH=build/sample .venv/bin/python -P -m sample.smoke --stack "$(STACK)" $(OPTIONS)

engines: .engines/ready  ## Fetch DynamoDB Local and Redis; tests that need them are skipped where that fails

clean:  ## Remove everything that was made here
	rm -rf .venv .venvs .engines .aws-sam build dist .coverage .*_cache

# The environments.  Each file below is the mark that a step was done, and is newer than what the step depends on.

.venv/python:
	@test -n "$(PYTHON)" || { echo "There is no Python >= 3.11 with venv and pip here." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -c 'import sys; print("{}.{}".format(*sys.version_info))' > $@

.venv/build: tests/requirements-build.txt .venv/python
	.venv/$(PIP) install -r $<
	@touch $@

.venv/demo: tests/requirements-demo.txt sample/requirements.txt .venv/build
	.venv/$(PIP) install --no-compile -r $<
	mkdir -p build/sample && ln -sfn ../../sample build/sample/sample && ln -sfn ../../benchmarks build/sample/benchmarks
	@touch $@

# Not while the wheel is being installed there.
.venv/tests: tests/requirements.txt tests/requirements-lint.txt .venv/demo | .venv/wheel
	.venv/$(PIP) install --no-compile -r tests/requirements.txt -r tests/requirements-lint.txt
	@touch $@

.venvs/lowest/tests: tests/requirements-lowest.txt .venv/python
	$$(tests/engines/pythons.sh $(LOWEST_PYTHON)) -m venv .venvs/lowest
	.venvs/lowest/$(PIP) install --no-compile -r $<
	@touch $@

# Tools of their own: what they pin is not what the tests pin.  Little of it is ever imported, so little of it is compiled; and
# installing a pip would take longer than half of what it installs, so that of .venv does it.
.venvs/%/ready: tests/requirements-%.txt .venv/python
	.venv/bin/python -m venv --without-pip .venvs/$*
	.venv/$(PIP) --python .venvs/$*/bin/python install --no-compile -r $<
	@touch $@

# What runs the functions: Lambda's Python of template.yaml, or ours where the machine does not have it.
.venvs/runtime/ready: tests/requirements-runtime.txt .venv/python
	"$$(tests/engines/pythons.sh $(FUNCTION_PYTHON) | grep . || echo .venv/bin/python)" -m venv --without-pip .venvs/runtime
	.venv/$(PIP) --python .venvs/runtime/bin/python install -r $<
	@touch $@

.venvs/%/tests: tests/requirements.txt tests/requirements-demo.txt sample/requirements.txt
	$$(tests/engines/pythons.sh $*) -m venv .venvs/$*
	.venvs/$*/$(PIP) install --no-compile -r $<
	@touch $@

.venvs/bench/library: build/wheel .venvs/bench/ready
	.venv/$(PIP) --python .venvs/bench/bin/python --quiet uninstall --yes lambda-idempotency
	.venv/$(PIP) --python .venvs/bench/bin/python install dist/*.whl
	@touch $@

build/wheel: $(SOURCES) .venv/build
	rm -rf dist
	.venv/$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .
	@mkdir -p build && touch $@

.venv/wheel: build/wheel .venv/demo
	.venv/$(PIP) --quiet uninstall --yes lambda-idempotency
	.venv/$(PIP) install dist/*.whl
	@touch $@

.venvs/%/wheel: build/wheel .venvs/%/tests
	.venvs/$*/$(PIP) --quiet uninstall --yes lambda-idempotency
	.venvs/$*/$(PIP) install dist/*.whl
	.venvs/$*/$(PIP) check
	@touch $@

# What `sam build` puts into each function of template.yaml: the wheel, what it needs, and the handlers without the demo.
# A function cannot keep the bytecode that it makes: compiling it here saves half of a cold start's CPU.  It is for the Python of
# template.yaml, where this machine has it; another one ignores it.
FUNCTION_PYTHON := 3.13
HANDLERS := $(addprefix sample/,__init__.py fanout.py metrics.py orders.py payments.py provider.py)

build/function: build/wheel sample/requirements.txt $(HANDLERS)
	rm -rf build/function.new $@
	.venv/$(PIP) install --no-compile --only-binary :all: --target build/function.new -r sample/requirements.txt
	.venv/$(PIP) install --no-compile --no-deps --target build/function.new dist/*.whl
	rm -rf build/function.new/bin
	mkdir build/function.new/sample && cp $(HANDLERS) build/function.new/sample
	python="$$(tests/engines/pythons.sh $(FUNCTION_PYTHON))"; test -z "$$python" || \
		"$$python" -m compileall -q --invalidation-mode checked-hash build/function.new
	mv build/function.new $@ && touch $@

# SAM's `BuildMethod: makefile` asks for this, with the folder to fill in ARTIFACTS_DIR; with --parallel, for all functions at once.
build-%:
	@test -n "$(ARTIFACTS_DIR)" || { echo "This is for sam build, which sets ARTIFACTS_DIR." >&2; exit 1; }
	@mkdir -p build && $(or $(PYTHON),python3) -c "$$ONE_AT_A_TIME" $(MAKE) --no-print-directory build/function
	cp -R build/function/. "$(ARTIFACTS_DIR)"

define ONE_AT_A_TIME
import fcntl, subprocess, sys
with open('build/lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    sys.exit(subprocess.call(sys.argv[1:]))
endef
export ONE_AT_A_TIME

.engines/ready: tests/engines/package-lock.json tests/engines/fetch.py tests/requirements-java.txt tests/requirements-node.txt .venv/python
	PYTHONPATH=tests .venv/bin/python -m engines.fetch

# Made on the way to test-on-%, and kept.
.PRECIOUS: .venvs/%/tests .venvs/%/wheel .venvs/%/ready
