# `make` alone lists what there is.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
STAMP := .venv/.installed
CASES ?= tests/conformance/cases
MODE ?= nftables
PYTEST_ARGS ?=
# Most tests wait for a kernel or a process more than they compute, and one worker waits for the
# virtual machine.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? 2 * n + 1 : 8)))
IMAGE ?= pyproxy:dev
SECONDS ?=
BENCH_ARGS ?=

export PATH := $(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help venv system vm-parts check test coverage test-vm demo conformance soak fuzz bench bench-check generate clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: $(STAMP) ## the development environment in .venv
	@:

$(STAMP): pyproject.toml lab/pyproject.toml
	@test -n "$(PYTHON)" || { echo "pyproxy needs Python 3.11 or newer: set PYTHON=..." >&2; exit 2; }
	@PYTHON=$(PYTHON) tools/system-packages.sh venv
	@echo "installing Python packages into .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]' --editable lab
	@touch $@

system:
	@tools/system-packages.sh nft ip conntrack curl ps

check: venv ## lint, format, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Of plugins that are found by themselves pytest takes apart every module, in every worker.
PLUGINS := --disable-plugin-autoload -p xdist -p pytest_cov -p _hypothesis_pytestplugin
# tests/sharing.py says which tests stay together.
BESIDE := --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

# What workers and agents have compiled is there for the next.
test: export PYTHONDONTWRITEBYTECODE =
test: system vm-parts check ## everything: check, then all tests
	@tools/system-packages.sh iptables ipset nfacct shellcheck chromium
	@tools/promtool.sh $(BIN)
	@tools/helm.sh $(BIN)
	$(BIN)/pytest $(PLUGINS) $(BESIDE) $(PYTEST_ARGS)

# What follows every line takes twice the time: who wants to know asks for it.
coverage: PYTEST_ARGS += --cov --cov-report=term
coverage: test ## the same, and which lines of pyproxy/ no test reaches

vm-parts: venv
	@tools/system-packages.sh qemu-system-x86_64 busybox depmod file ipvsadm
	@tools/vm-kernel.sh .vm
	@tools/vm-image.sh .vm/python $(BIN)/python
	@$(BIN)/python -m compileall -q pyproxy tests

test-vm: system vm-parts ## the tests that run on another kernel, in a virtual machine
	$(BIN)/pytest -m vm --all-in-vm $(PYTEST_ARGS)

demo: system venv ## a Service followed from its first packet, in MODE, in network namespaces (root)
	@$(BIN)/pyproxy lab demo --mode $(MODE)

conformance: system venv ## the packet cases in CASES=DIR against this agent, in MODE (root)
	@$(BIN)/python -m pyproxy_lab.conformance --mode $(MODE) $(CASES)

soak: system venv ## SECONDS (600) of 200 changes a second with faults, against a real kernel (root)
	$(BIN)/python -m tests.soak.soak $(SECONDS)

fuzz: venv ## coverage-guided fuzzing of all that parses for SECONDS each, where atheris is installed
	$(BIN)/python -m tests.fuzz.guided $(SECONDS)

bench: system venv ## measure MODE at scale, from outside with BENCH_ARGS and from inside (root)
	@$(BIN)/pyproxy bench --mode $(MODE) $(BENCH_ARGS)
	@$(BIN)/python -m bench --mode $(MODE)

bench-check: system venv ## fail where messages, bytes, rows or allocations have grown (root)
	@$(BIN)/python -m bench --check

generate: ## write the files that are generated from others
	@$(BIN)/python tools/prometheusrule.py deploy/monitoring/alerts.yaml \
		>deploy/monitoring/prometheusrule.yaml

image: ## build the image IMAGE with docker, podman or buildah
	@tools/image.sh $(IMAGE)

image-check: system ## build its stages without an engine, and start the agent there (root)
	@tools/system-packages.sh debootstrap
	@$(PYTHON) tools/image_check.py

clean: ## remove what the targets above have made
	rm -rf .venv .vm .coverage* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build *.egg-info
