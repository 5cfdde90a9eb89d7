# `make run` and `make test` work on a fresh machine. The other targets are for people who change the code.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := umask 022; $(BIN)/python -m pip install --disable-pip-version-check --root-user-action=ignore --only-binary :all:
# On a terminal, one line shows the number of packages, and the package that pip handles now. Elsewhere, pip is quiet.
QUIETLY = if [ -t 1 ]; then { $(1) || echo failed >&3; } 3>$(VENV)/.outcome | awk '/^Collecting/ { n++; printf "\r\033[K  %d packages, %s", n, $$2 } \
	/^Installing/ { printf "\r\033[K  unpacking %d packages …", n } { fflush() } END { printf "\r\033[K" }'; test ! -s $(VENV)/.outcome; else $(1) -qq; fi
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --only-binary :all: \
	--custom-compile-command "make lock" pyproject.toml
RECENT := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
define ENVIRONMENT
@$(PYTHON) $(RECENT) || { echo "NexMDM needs Python 3.11 or later. Name its program: make PYTHON=python3.12 …" >&2; exit 1; }
@$(BIN)/python $(RECENT) 2>/dev/null || { umask 022; $(PYTHON) -m venv --clear $(VENV); }
endef
# The data folder of the tests; tests/support/environment.py names the same folder.
TEST_DATA_DIR := $(or $(NEXMDM_TEST_DATA_DIR),$(CURDIR)/.nexmdm-test)
STOP_POSTGRES = for folder in "$(TEST_DATA_DIR)"*/; do env -u DATABASE_URL NEXMDM_DATA_DIR="$$folder" $(BIN)/python manage.py postgres stop; done >/dev/null
TEST_MANAGE := env -u DATABASE_URL NEXMDM_DATA_DIR="$(TEST_DATA_DIR)" $(BIN)/python manage.py

.PHONY: help run install test checks lint format lock licenses audit clean

help:
	@echo "make run     start NexMDM (Ctrl-C stops it)"
	@echo "make install install only the dependencies, if you want to start the parts yourself"
	@echo "make test    run lint, the check for missing migrations, and all tests"
	@echo "make lint    run ruff, mypy and the import contracts"
	@echo "make format  repair and format the code with ruff"
	@echo "make loadtest        100 devices for 5 minutes, compared with targets; report in reports/"
	@echo "make loadtest-large  100,000 devices for 5 minutes"
	@echo "make trust   test each promise against real servers, and print a table"
	@echo "make lock    pin the newest dependencies that pyproject.toml allows"
	@echo "make licenses  list the dependencies with versions and licenses"
	@echo "make audit     look for known vulnerabilities in the dependencies; needs the internet"
	@echo "make clean   remove the virtual environment and caches; keep the data folders"

run: $(VENV)/runtime.stamp
	@exec $(BIN)/python manage.py serve --end-with-parent

install: $(VENV)/runtime.stamp

# Python must write its bytecode: the tests start hundreds of processes, and each would compile every module again.
test: export PYTHONDONTWRITEBYTECODE =

# Three test processes, each with its own PostgreSQL, keep two cores busy while one process waits for a server to start.
test: $(VENV)/dev.stamp
	@$(MAKE) --no-print-directory checks; outcome=$$?; $(STOP_POSTGRES); exit $$outcome

checks: lint
	$(TEST_MANAGE) makemigrations --check --dry-run
	$(BIN)/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy .
	$(BIN)/lint-imports --no-logo

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: loadtest loadtest-large trust

loadtest: $(VENV)/runtime.stamp
	@$(BIN)/python -m loadtest --devices 100 --interval 120 --duration 5m --commands-per-minute 60 \
		--report reports/loadtest.html

loadtest-large: $(VENV)/runtime.stamp
	@$(BIN)/python -m loadtest --devices 100000 --interval 120 --duration 5m --ramp 30 --commands-per-minute 60 \
		--errors 0 --p95 15 --p99 40 --report reports/loadtest-large.html

# The trust run also runs tests, so it uses the PostgreSQL of the tests.
trust: $(VENV)/dev.stamp
	@$(BIN)/python -m loadtest.trust; outcome=$$?; $(TEST_MANAGE) postgres stop >/dev/null; exit $$outcome

lock: $(BIN)/uv
	$(COMPILE) --upgrade --extra server --output-file requirements.lock
	$(COMPILE) --upgrade --extra server --extra dev --constraint requirements.lock --output-file requirements-dev.lock

licenses: $(VENV)/runtime.stamp
	@$(BIN)/python manage.py licenses

audit: $(BIN)/pip-audit
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement requirements-dev.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The development lock file also contains the runtime dependencies, so one environment serves both purposes.
$(VENV)/runtime.stamp: requirements.lock
	$(ENVIRONMENT)
	@echo "Installing the dependencies into $(VENV); this takes about a minute …"
	@$(call QUIETLY,$(PIP) --requirement requirements.lock)
	@echo "Installed."
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock requirements.lock
	$(ENVIRONMENT)
	@echo "Installing the dependencies and development tools into $(VENV); this takes a minute or two …"
	@$(call QUIETLY,$(PIP) --requirement requirements-dev.lock)
	@echo "Installed."
	@touch $(VENV)/runtime.stamp $@

$(BIN)/uv $(BIN)/pip-audit:
	$(ENVIRONMENT)
	@$(PIP) -qq $(@F)
