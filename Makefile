# make demo       install, run the main job on this machine, build the site with its result
# make demo-cloud the same on simulated RunPod machines: the sweep over rented GPUs, without an account
# make test       install, run the tests that Python alone can run; names what it left out
# make test-all   the rest too: OpenSSH, Chromium, PostgreSQL, installed from Debian's packages where missing
# make lint       ruff and mypy
# make soak       the long tests, which test-all leaves out
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# pip compiles on one core; this does on all. Some packages ship files that are not for this Python: no matter.
COMPILE := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
# A file's tests share servers and runs, so files are spread, not tests; four, since many of them wait.
PYTEST := $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder
SERVICES := bash tools/services.sh
LEFT_OUT := sshd chromium postgres slow soak
# Tests start Python some hundred times: where this is set, each start would compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE
ALONE := not sshd and not chromium and not postgres and not slow and not soak

.PHONY: demo demo-cloud test test-all lint collect services soak site constraints clean

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is too old (PYTHON=$(PYTHON)): give Python 3.11 or later, make PYTHON=python3.12" >&2; exit 2; }
	@echo "installing into $(VENV) (a minute or two; the training extra is the large part)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) 'setuptools>=77' wheel
	@# The exact version by name first: in some places an open range resolves to gigabytes more.
	@$(PIP) "$$(grep -i '^torch==' constraints.txt)"
	@$(PIP) --no-build-isolation -e '.[train]'
	@$(COMPILE)
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@$(PIP) --no-build-isolation -e '.[train,dev]'
	@$(COMPILE)
	@touch $@

demo: linux $(VENV)/.base
	@$(BIN)/python tools/demo.py

demo-cloud: linux $(VENV)/.base
	@$(BIN)/python -m glasshouse.providers.fakes -- $(BIN)/python tools/demo.py --cloud

test: linux $(VENV)/.dev
	@code=0; $(PYTEST) -m '$(ALONE)' || code=$$?; \
	echo "left out: tests marked $(LEFT_OUT); make test-all runs all but soak"; exit $$code

# On another system nothing is installed first: what works there does so without these.
.PHONY: linux
linux:
	@sh tools/needs_linux.sh 'make $(MAKECMDGOALS)'

# Debian's packages come while pip installs, and tests are compiled while mypy thinks: none waits for the other.
test-all: linux
	@$(MAKE) --no-print-directory -j3 services lint collect
	@code=0; $(PYTEST) -m 'not soak' || code=$$?; \
	echo "left out: tests marked soak; make soak runs them"; exit $$code

lint: $(VENV)/.dev
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy

# pytest rewrites every test file once and keeps that; otherwise its four workers would do it at the same time.
collect: $(VENV)/.dev
	@$(BIN)/python -m pytest --collect-only -q >/dev/null || true

services:
	@$(SERVICES)

soak: linux $(VENV)/.dev services
	@$(PYTEST) -m soak

site: $(VENV)/.base
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "built build/site/index.html"

constraints:
	@{ echo '# Exact versions of everything that `make` installs; made by `make constraints` after a deliberate upgrade.'; \
	   $(BIN)/python -m pip list --format=freeze | grep -v -i '^glasshouse\|^pip=\|^setuptools=\|^wheel='; } > constraints.tmp
	@mv constraints.tmp constraints.txt

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache
