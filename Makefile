# The two commands: `make run` and `make test`. They need Python >= 3.11 and the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
SOURCES := engine lua persister loadtest tests examples deploy web/build.py docs/conf.py setup.py
TOUCH_REDIS := $(addprefix tests/,lua store redemption lookup control ledger imports http lane health persister)
# Tests for every Python of the machine: they need only Valkey, and show differences between Python versions.
TESTS_ON_EACH_PYTHON := $(addprefix tests/,test_settings.py codes imports/test_parser.py observability \
	store/test_void_ranges.py support contract/test_openapi.py persister/webhooks/test_retry_schedule.py \
	loadtest/test_capacity.py loadtest/test_open_loop.py loadtest/test_verifier.py lua)

# Directories whose tests start processes: they take long, although they ask for no servers.
SLOW := $(addprefix tests/,system cli bundled processes examples install loadtest/test_bench_peers.py \
	loadtest/test_comparators.py support/test_hanging.py)

.PHONY: other-python run help test coverage test-fast test-long test-calendar sanitize install-test test-pythons test-this-python image-test client-test chaos test-redis \
	bench bench-guard bench-blocks bench-peers guard-table guard-plot pages built-pages check lint types luacheck imports graph lock sbom pip-audit clean

# A .venv of another Python than the one that is asked for is made anew.
BASE_PYTHON := -c 'import os, sys; print(os.path.realpath(sys._base_executable))'
ifneq ($(filter command environment,$(origin PYTHON)),)
ifneq ($(wildcard $(BIN)/python),)
ifneq ($(shell $(PYTHON) $(BASE_PYTHON)),$(shell $(BIN)/python $(BASE_PYTHON)))
OTHER_PYTHON := other-python
endif
endif
endif

run: $(VENV)/.installed built-pages  ## start everything, with a demo campaign the first time
	$(BIN)/redeem up --demo

pages: $(VENV)/.installed  ## the dashboard's pages, from web into engine/pages/built; needs the registry of npm
	$(BIN)/python web/build.py --required

# Where they cannot be built, a line says why, and the work goes on.
built-pages: $(VENV)/.installed
	@$(BIN)/python web/build.py

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

test: check built-pages  ## the whole suite, on its own servers
	$(PYTEST) -n 4 -m "not long"

coverage: $(VENV)/.installed built-pages  ## the whole suite, and which lines it ran; that more than doubles its processor time
	$(PYTEST) -n 4 -m "not long" --cov --cov-report=term:skip-covered

test-fast: $(VENV)/.installed  ## quick: tests without servers, and the tests of the Lua scripts
	$(PYTEST) -n 2 -m "not long and not servers" $(addprefix --ignore=,$(SLOW))
	$(PYTEST) -m "not long" tests/lua

test-long: $(VENV)/.installed  ## the long versions of the slow tests
	$(PYTEST) -m long

# What is compiled once more, with AddressSanitizer and LeakSanitizer in it. They write reports, which are read at the end.
SANITIZED := build/sanitized
sanitize: $(VENV)/.installed  ## a million bodies, the tests of all lanes, of the reader of events and of a rebuild's records, under AddressSanitizer, leaks too; needs gcc
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)/reports
	cp -r engine lua persister loadtest tests docs pyproject.toml setup.py *.md LICENSE $(SANITIZED)
	rm -f $(SANITIZED)/engine/*/_*.so $(SANITIZED)/persister/*/_*.so
	cd $(SANITIZED) && CFLAGS="-O1 -g -fsanitize=address" $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	cd $(SANITIZED) && LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=log_path=$(CURDIR)/$(SANITIZED)/reports/report:exitcode=0 PYTHONMALLOC=malloc \
	  $(CURDIR)/$(BIN)/python -m pytest --timeout 3000 \
	  tests/codes/test_ff1.py tests/guard/test_compiled_limits.py tests/lane/test_express_bodies.py \
	  tests/lane/test_express_calls.py tests/lane/test_lanes_alike.py tests/lane/test_signed_alike.py \
	  tests/persister/ingest/test_packed_rows.py tests/persister/rebuild/test_plain_records.py
	$(BIN)/python tests/sanitizer_reports.py $(SANITIZED)/reports

test-calendar: $(VENV)/.installed  ## date-dependent tests, with the clock at the ends of months and years; slow
	$(BIN)/python -m tests.support.other_clocks -n 4 tests/lua tests/persister tests/cli/test_ledger.py tests/cli/test_doctor.py

install-test: $(VENV)/.installed  ## installs all lock files on every Python of the machine, from an index with newer versions
	$(PYTEST) tests/install

test-pythons: $(VENV)/.installed  ## unit and Lua tests on the machine's other Pythons, each in its own environment
	@$(BIN)/python tests/pythons.py others | while read -r version python; do \
	  $(MAKE) VENV=build/venv-$$version PYTHON="$$python" test-this-python </dev/null || exit 1; \
	done

test-this-python: $(VENV)/.installed
	$(PYTEST) -n 2 -m "not long" $(TESTS_ON_EACH_PYTHON)

image-test: $(VENV)/.installed  ## builds the image without a daemon and runs it; as root (Debian: mmdebstrap buildah)
	$(PYTEST) --timeout=3600 tests/image/check_image.py

client-test: $(VENV)/.installed  ## clients generated from docs/openapi.json in Python and TypeScript redeem a code; needs npm
	npm ci --no-audit --no-fund --prefix tests/api/typescript
	$(PYTEST) tests/api/test_generated_clients.py

chaos: $(VENV)/.installed  ## kills, stops and cuts off every process 200 times, under load
	$(PYTEST) -m long -s tests/system/test_chaos.py

guard-table: $(VENV)/.installed  ## guessers and honest customers against the guard; writes the table of docs/guard.md; slow
	REDEEM_TEST_POPULATIONS=large $(PYTEST) -p no:xdist tests/guard/test_populations.py

guard-plot: $(VENV)/.installed  ## how often honest people are blocked, by how often they mistype; draws the plot of docs/guard.md
	$(BIN)/python -m tests.support.honest_errors

test-redis: $(VENV)/.installed  ## all tests that use Redis, against the machine's redis-server (7.0 or later)
	REDEEM_TEST_REDIS_SERVER=$$(command -v redis-server) $(PYTEST) -n 4 -m "not long" $(TOUCH_REDIS)

bench: $(VENV)/.installed  ## redemptions a second, as ratios to two baselines
	$(BIN)/python -m loadtest.benchmarks.redemptions --json build/bench.json

bench-guard: $(VENV)/.installed  ## a worker's time for a redemption with the guard off and on
	$(BIN)/python -m loadtest.benchmarks.guard

bench-blocks: $(VENV)/.installed  ## after how long a block is in force in every worker; writes the figures into docs/guard.md
	$(BIN)/python -m loadtest.benchmarks.blocks --write

bench-peers: $(VENV)/.installed  ## redemptions a second beside OpenResty, Go, FastAPI and others, if they are installed
	$(BIN)/python -m loadtest.comparators --json build/bench-peers.json

check: lint types luacheck imports docs  ## lint, types, scripts, imports, docs

lint: $(VENV)/.installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check --quiet $(SOURCES)
	@! grep -rnE --include='*.py' '# (noqa(: [A-Z0-9, ]+)?|type: ignore(\[[a-z, -]+\])?) *$$' $(SOURCES) \
	  || { echo "give a reason after each noqa and type: ignore, on the same line"; exit 1; }

types: $(VENV)/.installed
	$(BIN)/mypy

luacheck: $(VENV)/.installed
	@if command -v luacheck >/dev/null; then \
	  rm -rf build/lua && $(BIN)/python -m lua.loader build/lua && luacheck --quiet --no-color --config .luacheckrc build/lua; \
	else echo "luacheck is not on this machine (Debian: lua-check); the scripts were not checked"; fi

.PHONY: docs
docs: $(VENV)/.installed  ## the docs site in build/site; a warning is an error
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs -d build/docs . build/site

imports: $(VENV)/.installed
	$(BIN)/lint-imports --no-cache

# --no-deps: pip installs only what the lock file names. If pip resolved an extra (`coverage[toml]`), it would take
# the newest release of the index, which has no hash in the lock file. `pip check` reports missing packages.
PIP = $(BIN)/python -m pip --disable-pip-version-check
INSTALL_LOCKED = $(PIP) install --quiet --no-deps --only-binary :all: --require-hashes --requirement

graph:  ## the import graph: circles, imports that run back up, floors
	@$(PYTHON) tests/import_graph.py

other-python:

COMPILED := engine/codes/_ff1.pyx engine/guard/_limits.pyx engine/lane/_express.pyx persister/ingest/_packed_rows.pyx \
	persister/rebuild/_plain_records.pyx

# Without a compiler or Python.h the compiled modules are left out, and a line says so.
# Written last: an interrupted installation does not count as installed.
$(VENV)/.installed: requirements-dev.lock pyproject.toml setup.py $(COMPILED) $(wildcard engine/lane/*.pxi) persister/byte_buffer.pxd engine/digests.h $(OTHER_PYTHON)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, this is %s" % sys.version.split()[0])'
	@echo "installing into $(VENV)$(if $(OTHER_PYTHON), anew: it is of another Python), a minute or two" >&2
	$(PYTHON) -m venv $(if $(OTHER_PYTHON),--clear )$(VENV)
	$(INSTALL_LOCKED) requirements-dev.lock
	suffix=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))'); rm -f $(COMPILED:.pyx="$$suffix")
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(PIP) check
	@$(BIN)/python -c 'import importlib.util as u; out = [name for name in "$(subst /,.,$(COMPILED:.pyx=))".split() if not u.find_spec(name)]; out and print("left out (no C compiler or no Python.h), Python does their work at more cost:", *out)' >&2
	touch $@

COMPILE := $(BIN)/uv pip compile --quiet $(UPGRADE) --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate
LOCK := $(COMPILE) pyproject.toml --extra build

lock: $(VENV)/.installed  ## rewrite the lock files; UPGRADE=--upgrade also upgrades all versions
	$(LOCK) --output-file requirements.lock >/dev/null
	$(LOCK) --extra dev --constraint requirements.lock --output-file requirements-dev.lock >/dev/null
	$(COMPILE) --group peers --output-file loadtest/comparators/requirements.lock >/dev/null
	$(COMPILE) --group pages --output-file web/node.lock >/dev/null

sbom: $(VENV)/.installed  ## software bill of materials of the locked packages, in build/sbom.json (CycloneDX)
	@mkdir -p build
	$(BIN)/python deploy/dependencies.py sbom requirements.lock > build/sbom.json

pip-audit: $(VENV)/.installed  ## known vulnerabilities of the locked packages, by pip-audit, if it is installed
	$(BIN)/python deploy/dependencies.py audit requirements.lock

clean:  ## remove .venv and everything that was built
	rm -rf $(VENV) build engine/pages/built web/node_modules .mypy_cache .ruff_cache .hypothesis *.egg-info $(COMPILED:.pyx=.c) $(COMPILED:.pyx=.*.so)
