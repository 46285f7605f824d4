# make demo       install, run the main job on this machine, build the site with its result
# make demo-cloud the same on simulated RunPod machines: the sweep over rented GPUs, without an account
# make quick      install, run the tests that need neither pod nor server nor torch: what to run while you change something
# make test       install, run the tests that Python alone can run; names what it left out
# make test-all   the rest too: OpenSSH, Chromium, PostgreSQL, installed from Debian's packages where missing
# make lint       ruff and mypy
# make soak       the long tests, which test-all leaves out
# make lock       renew locks/ after a change of pyproject.toml, then tools/pod_pins.py; UPGRADE=all or UPGRADE=NAME takes newer versions
# make audit      ask a database of known vulnerabilities about what is locked; says so where none can be reached
# TORCH=VERSION, TORCH=FILE.whl or TORCH=URL of an index: another torch than the one that fits this machine
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := tools/install.py $(VENV)
# pip compiles on one core; this does on all. Some packages ship files that are not for this Python: no matter.
COMPILE := $(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
# A file's tests share servers and runs, so files are spread, not tests; five, since many of them wait.
PYTEST := $(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder
SERVICES := bash tools/services.sh
# What decides, judges, signs and checks: no machine, real or simulated, no whole runs, no long simulation.
QUICK := tests/judgement tests/measurement tests/records tests/sealing tests/attestation \
	tests/config/test_compose.py tests/config/test_conf_files.py tests/config/test_mistakes.py \
	tests/test_canonical.py tests/test_codes.py tests/test_docs.py tests/test_imports.py tests/test_retry.py \
	--ignore=tests/attestation/test_tamper_suite.py --ignore=tests/attestation/test_tamper_clock.py \
	--ignore=tests/measurement/test_randomisation.py --ignore=tests/measurement/test_simulator.py
LEFT_OUT := sshd chromium postgres index slow soak
# Tests start Python some hundred times: where this is set, each start would compile our modules anew.
unexport PYTHONDONTWRITEBYTECODE
ALONE := not sshd and not chromium and not postgres and not index and not slow and not soak

# PyTorch's own packages, a folder for each build (cpu, cu126, ...): asked first, and done without where it is out of
# reach. The one address of its kind here, since only there is a torch for Linux without CUDA.
export TORCH_INDEX ?= https://download.pytorch.org/whl
export TORCH
LOCKS := $(wildcard locks/*.txt)
# Another TORCH than the one that is installed: install again.
ifneq ($(TORCH),)
ifneq ($(TORCH),$(shell cat $(VENV)/.torch 2>/dev/null))
.PHONY: $(VENV)/.base
endif
endif

.PHONY: demo demo-cloud quick test test-all lint collect services soak site lock audit clean

$(VENV)/.base: pyproject.toml $(LOCKS)
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON) (PYTHON=$(PYTHON)): on Debian, apt install python3 python3-venv" >&2; exit 2; }
	@$(PYTHON) $(INSTALL) run site train
	@echo "  compiling what was installed"
	@$(COMPILE)
	@printf '%s\n' "$$TORCH" > $(VENV)/.torch
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@$(PYTHON) $(INSTALL) dev
	@echo "  compiling what was installed"
	@$(COMPILE)
	@touch $@

demo: linux $(VENV)/.base
	@$(BIN)/python tools/demo.py

demo-cloud: linux $(VENV)/.base
	@$(BIN)/python -m glasshouse.providers.fakes -- $(BIN)/python tools/demo.py --cloud

quick: linux $(VENV)/.dev
	@code=0; $(PYTEST) -m '$(ALONE) and not train' $(QUICK) || code=$$?; \
	echo "left out: whatever needs a pod, a server or torch; make test runs most of it"; exit $$code

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

# pytest rewrites every test file once and keeps that; otherwise its workers would do it at the same time.
collect: $(VENV)/.dev
	@$(BIN)/python -m pytest --collect-only -q >/dev/null || true

services:
	@$(SERVICES)

soak: linux $(VENV)/.dev services
	@$(PYTEST) -m soak

site: $(VENV)/.base
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "built build/site/index.html"

audit:
	@$(PYTHON) tools/audit.py

lock:
	@$(PYTHON) tools/lock.py $(if $(UPGRADE),--upgrade $(filter-out all,$(UPGRADE)))

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache
