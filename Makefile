# Every path is relative: the folder's own name may hold spaces.
SHELL := /bin/sh
PY := .venv/bin/python
# Each pytest process starts servers of its own. Many tests wait, hence more processes than there are cores.
PARALLEL = -n $$(($$(getconf _NPROCESSORS_ONLN) + 2)) --dist worksteal
# The long ones have workers of their own, several for each test.
PARALLEL_LONG = -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist worksteal
# Tests start hundreds of processes: without bytecode, each would compile every module again.
unexport PYTHONDONTWRITEBYTECODE
LINT = $(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && \
  { .venv/bin/lint-imports --no-logo pyproject.toml >.venv/imports.log || { cat .venv/imports.log; exit 1; }; }
LOCKED = --universal --python-version 3.11 --generate-hashes --no-header -q
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-matrix coverage lint docs picture screenshots bench bench-walk bench-queue bench-live bench-idle bench-capacity bench-page soak services worker lock clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r a b; do printf '%-18s %s\n' "$$a" "$$b"; done

setup:  ## make .venv from requirements.lock (skipped when up to date)
	@sh scripts/setup.sh

demo: setup  ## the main job on real data: a worker is killed in the middle, nothing is doubled or lost
	@$(PY) -m demo

# Lint runs beside the tests, which wait a good deal. The collection compiles the tests once for all processes.
test: setup  ## lint, the documentation's site, and every test but the long ones
	@{ $(LINT); } >.venv/lint.log 2>&1 & lint=$$!; \
	$(PY) -m pytest -q --collect-only -m "not long" >/dev/null 2>&1; \
	$(PY) -m pytest -q -m "not long" $(PARALLEL) --durations=15; result=$$?; \
	wait $$lint || { cat .venv/lint.log; exit 1; }; exit $$result

test-long: setup  ## the long ones: hundreds of kills for each kind of loop; SEED=n repeats a run
	@sh scripts/pgbouncer.sh
	@$(PY) -m pytest -q -m long $(PARALLEL_LONG) -o faulthandler_timeout=1800 --durations=15

test-matrix: setup  ## Python 3.11 to 3.13, and PostgreSQL 14 to 17; ONLY="3.12 16" for a part
	@$(PY) -m tests.matrix $(ONLY)

coverage: setup  ## branch coverage of worker/, and which files are below 90 %
	@$(PY) -m pytest -q -m "not long" $(PARALLEL) --cov=worker --cov-branch --cov-report=
	@$(PY) -m tests.coverage

picture: setup  ## docs/worker-top.svg: the page of `worker top` while the demo's jobs run
	@$(PY) -m demo.picture

screenshots: setup  ## each view of the page at three widths in both colours, in build/screenshots/
	@$(PY) -m demo.screenshots $(VIEWS)

docs: setup  ## the documentation as a site, in site/; a dead link fails
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build

lint: setup  ## ruff, mypy --strict and import-linter
	@$(LINT)

bench: bench-walk bench-queue bench-live  ## every benchmark; QUICK=1 for smaller runs

bench-walk: setup  ## our loops beside hand-written SQL, and what the checkpoint costs
	@$(PY) -m benchmarks.walk

bench-queue: setup  ## our queue beside arq, saq, streaq, taskiq and Celery; ROWS=1,4 PEERS=arq for a part
	@$(PY) -m benchmarks.queue && $(PY) -m benchmarks.outbox

bench-live: setup  ## latencies of an application beside a walk, with and without a pace
	@$(PY) -m benchmarks.live

bench-capacity: setup  ## memory, disk and connections that a run and a worker cost; writes docs/how-to/plan-capacity.md
	@$(PY) -m benchmarks.capacity

bench-page: setup  ## first paint and updates of the page with 10,000 runs and 10,000 dead letters
	@$(PY) -m benchmarks.page

bench-idle: setup  ## what 10,000 paused or waiting runs cost an idle worker
	@$(PY) -m benchmarks.idle

soak: setup  ## a million jobs of all kinds through one worker: what grows? JOBS=200000 for a part
	@$(PY) -m benchmarks.soak

services: setup  ## PostgreSQL and Valkey in the foreground, their URLs printed
	@$(PY) -m worker.embedded

worker: setup  ## migrate and run a worker (embedded servers unless DATABASE_URL and REDIS_URL are set)
	@$(PY) -m worker.embedded -- $(PY) -m worker run --migrate

lock: setup  ## pin the newest versions that pyproject.toml admits, for the tests and for deploy/Containerfile
	@$(PY) -m pip install -q --disable-pip-version-check uv
	@$(PY) -m uv pip compile pyproject.toml --extra dev --upgrade $(LOCKED) --no-emit-package longhaul-worker -o requirements.lock
	@$(PY) -m uv pip compile pyproject.toml --extra web --extra metrics -c requirements.lock $(LOCKED) \
	  --no-emit-package longhaul-worker -o deploy/requirements.lock
	@echo hatchling | $(PY) -m uv pip compile - -c requirements.lock $(LOCKED) -o deploy/build.lock

clean:  ## remove .venv and caches
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage site
