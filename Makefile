# The targets for people and for CI; each installs what it needs. PYTHON=/path/to/python3 chooses the interpreter.
PYTHON ?= python3
export PYTHON
export LC_ALL := C.UTF-8
export PYTHONUNBUFFERED := 1
ifeq ($(strip $(HOME)),)
unexport HOME # an empty HOME puts ~/.ansible at the root of the file system; without one the password file is asked
endif

.NOTPARALLEL:
.PHONY: help demo demo-down test test-fast lint faults molecule fresh-debian bench-promote bench-fleet bench-partition bench-consistency docs clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 22

demo: ## a switchover under load on real servers; again to go back
	@tools/bootstrap.sh demo
	@.venv/bin/python -m tests.lab.demo

demo-down: ## stop and remove what the demo started
	@if [ -x .venv/bin/python ]; then .venv/bin/python -m tests.lab.demo --down; fi

test: ## everything CI runs but the demo: gates, unit, integration, AWX, a share of the faults
	@tools/bootstrap.sh test
	@tools/bootstrap.sh awx
	@tools/bootstrap.sh patroni || echo 'PATRONI CANNOT BE INSTALLED HERE, its tests are skipped' >&2
	@.venv/bin/python tools/stages.py \
		lint '$(MAKE) --no-print-directory lint' \
		unit '.venv/bin/python -m pytest -q tests/unit' \
		integration '.venv/bin/python -m pytest -q tests/integration -m "not long"' \
		awx '.venv/bin/python -m pytest -q tests/awx' \
		faults '.venv/bin/python -m pytest -q tests/faults -m "not long"'

test-fast: ## unit tests and the gates that take seconds
	@tools/bootstrap.sh test
	@tools/bootstrap.sh lint
	@.venv/bin/python tools/stages.py \
		lint '.venv-lint/bin/python tools/gates.py --fast' \
		unit '.venv/bin/python -m pytest -q tests/unit'

lint: ## every static gate
	@tools/bootstrap.sh lint
	@tools/bootstrap.sh importer
	@.venv-lint/bin/python tools/gates.py

faults: ## the whole fault matrix, on PostgreSQL 18, 15 and 13; more than an hour
	@tools/bootstrap.sh test
	@tools/bootstrap.sh patroni || echo 'PATRONI CANNOT BE INSTALLED HERE, its tests are skipped' >&2
	@.venv/bin/python tools/stages.py \
		'tables on 15 and 17' '.venv/bin/python -m pytest -q tests/integration/tables -m long' \
		'consistency, the other versions and keys' '.venv/bin/python -m pytest -q tests/integration/consistency -m long' \
		'faults on 18' 'DBOPS_VERSION=18 .venv/bin/python -m pytest -q -s tests/faults' \
		'faults on 15' 'DBOPS_VERSION=15 .venv/bin/python -m pytest -q tests/faults --ignore=tests/faults/test_patroni.py --deselect=tests/faults/test_kill.py::test_killed_at_two_hundred_random_times' \
		'faults on 13' 'DBOPS_VERSION=13 .venv/bin/python -m pytest -q tests/faults --ignore=tests/faults/test_patroni.py --deselect=tests/faults/test_kill.py::test_killed_at_two_hundred_random_times'

RUNS ?= 20
LOADS ?= base,half,most,long,dirty,frozen,rerun
bench-promote: ## switchovers under load, ours, Patroni's and repmgr's; hours, or RUNS=2 LOADS=base for a look
	@tools/bootstrap.sh test
	@tools/bootstrap.sh patroni || echo 'bench-promote: PATRONI CANNOT BE INSTALLED HERE, its rows are left out' >&2
	@.venv/bin/python -m tests.benchmarks.bench_promote --runs '$(RUNS)' --groups '$(LOADS)'

CLUSTERS ?= 100
bench-fleet: ## one run over 100 clusters: wall time and the controller's memory; about ten minutes and 20 GB of disk
	@tools/bootstrap.sh test
	@.venv/bin/python -m tests.benchmarks.bench_fleet --clusters '$(CLUSTERS)'

ROWS ?= 300000
LEAF_ROWS ?= 100000
bench-partition: RUNS = 5
bench-partition: ## partitions and indexes changed under load, beside pg_partman and pg-partsmith; or RUNS=1 ROWS=20000 for a look
	@tools/bootstrap.sh test
	@tools/bootstrap.sh partsmith || echo 'bench-partition: PG-PARTSMITH CANNOT BE INSTALLED HERE, its rows are left out' >&2
	@.venv/bin/python -m tests.benchmarks.bench_partition --runs '$(RUNS)' --rows '$(ROWS)' --leaf-rows '$(LEAF_ROWS)'

bench-consistency: RUNS = 3
bench-consistency: ROWS = 2000000
bench-consistency: ## what it costs to know that two tables are the same, beside reladiff and data-diff; or ROWS=200000 RUNS=1 for a look
	@tools/bootstrap.sh test
	@tools/bootstrap.sh reladiff || echo 'bench-consistency: RELADIFF CANNOT BE INSTALLED HERE, its rows are left out' >&2
	@tools/bootstrap.sh datadiff || echo 'bench-consistency: DATA-DIFF CANNOT BE INSTALLED HERE, its rows are left out' >&2
	@.venv/bin/python -m tests.benchmarks.bench_consistency --runs '$(RUNS)' --rows '$(ROWS)'

molecule: ## scenarios on hosts with systemd, over SSH, as root: all of them, or SCENARIO=promote_replica
	@tools/bootstrap.sh molecule
	@$(if $(SCENARIO),,.venv/bin/python -m pytest -q tests/hosts)
	@.venv/bin/python -m tests.lab.scenarios $(SCENARIO)

fresh-debian: ## the demo on minimal Debian 12 and 13, as root and not; as root, with mmdebstrap
	@tools/fresh_debian.sh

docs: ## the modules' pages as HTML, in .lab/docs/html
	@tools/bootstrap.sh docs
	@tools/docs.sh .lab/docs

clean: demo-down ## remove what all of this made
	@$(PYTHON) -m tests.lab.hosts down
	@rm -rf .venv* .lab .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
