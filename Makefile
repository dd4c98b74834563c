# Run `make` alone for a list of targets.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
STAMP := .venv/.installed
CASES ?= tests/conformance/cases
MODE ?= nftables
# The Debian suite whose kernel the virtual machine boots: bullseye, bookworm, trixie or sid.
KERNEL ?= bookworm
export PYPROXY_VM_KERNEL := $(KERNEL)
# Further parameters of that kernel, such as ipv6.disable=1.
export PYPROXY_VM_BOOT := $(BOOT)
PYTEST_ARGS ?=
# More workers than processors: most tests wait for a kernel or a process more than they compute, and
# one worker only waits for the virtual machine.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? 2 * n + 1 : 8)))
IMAGE ?= pyproxy:dev
# Further flags of the container engine's build, such as --network=host.
BUILD_FLAGS ?=
SECONDS ?=
BENCH_ARGS ?=
# uv finds these interpreters, or downloads them.
PYTHONS ?= 3.11 3.12 3.13 3.14

COMMANDS := nft ip conntrack curl ps
TEST_COMMANDS := iptables ipset nfacct shellcheck chromium
VM_COMMANDS := qemu-system-x86_64 busybox depmod file ipvsadm

export PATH := $(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help venv system workflows-check lowest newest vm-programs compiled vm-parts test-tools check test coverage test-vm demo conformance soak fuzz bench bench-vm bench-check dist dist-check generate pictures docs docs-serve clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

venv: $(STAMP) ## create the development environment in .venv
	@:

$(STAMP): pyproject.toml lab/pyproject.toml
	@test -n "$(PYTHON)" || { echo "pyproxy needs Python 3.11 or newer: set PYTHON=..." >&2; exit 2; }
	@PYTHON=$(PYTHON) tools/system-packages.sh venv
	@echo "installing Python packages into .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]' --editable lab
	@touch $@

# The extra release: build, twine, uv and zizmor.
RELEASE_STAMP := .venv/.release-installed
$(RELEASE_STAMP): $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[release]'
	@touch $@

system:
	@tools/system-packages.sh $(COMMANDS)

check: venv workflows-check ## check lint, format, types, import layers, prose, workflows and commit subjects
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/prose_lint.py
	tools/commit_subjects.sh

workflows-check: $(RELEASE_STAMP) ## check the workflows with zizmor and actionlint
	@tools/workflows_check.sh

# Plugins found by entry points would have pytest rewrite all their modules, in every worker.
PLUGINS := --disable-plugin-autoload -p xdist -p pytest_cov -p _hypothesis_pytestplugin
# tests/sharing.py groups the tests.
BESIDE := --numprocesses $(WORKERS) --dist loadscope --no-loadscope-reorder

# Workers, agents and the virtual machine reuse each other's compiled modules. All packages are
# installed first, because apt runs once at a time; the rest is prepared in parallel.
test: export PYTHONDONTWRITEBYTECODE =
test: ## run everything: check, then all tests
	@PYTHON=$(PYTHON) tools/system-packages.sh venv $(COMMANDS) $(VM_COMMANDS) $(TEST_COMMANDS)
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target check compiled vm-parts test-tools
	$(BIN)/pytest $(PLUGINS) $(BESIDE) $(PYTEST_ARGS)

# Coverage doubles the time of the tests.
coverage: PYTEST_ARGS += --cov --cov-report=term
coverage: test ## run the same, with the lines of pyproxy/ that no test reaches

test-tools: venv $(RELEASE_STAMP)
	@tools/promtool.sh $(BIN)
	@tools/helm.sh $(BIN)

# The guest runs the programs of this machine.
vm-programs:
	@tools/system-packages.sh iptables ipset nfacct

# pytest compiles modules of tests in a way of its own, here once instead of in every worker and in the
# virtual machine. Its later runs report what cannot be collected.
compiled: venv
	@$(BIN)/python -m compileall -q pyproxy lab tests
	@$(BIN)/pytest $(PLUGINS) --collect-only -q >/dev/null 2>&1 || true

vm-parts: venv
	@tools/system-packages.sh $(VM_COMMANDS)
	@tools/vm-kernel.sh .vm $(KERNEL)
	@tools/vm-image.sh .vm/python $(BIN)/python

test-vm: system vm-programs compiled vm-parts ## run all tests of the virtual machine, on KERNEL=bullseye|bookworm|trixie|sid
	$(BIN)/pytest -m vm --all-in-vm $(PYTEST_ARGS)

demo: system venv ## follow a Service from its first packet, in MODE, in network namespaces (root)
	@$(BIN)/pyproxy lab demo --mode $(MODE)

conformance: system venv ## run the packet cases in CASES=DIR against this agent, in MODE (root)
	@$(BIN)/python -m pyproxy_lab.conformance --mode $(MODE) $(CASES)

soak: system venv ## run SECONDS (600) of 200 changes a second with faults (root)
	$(BIN)/python -m tests.soak.soak $(SECONDS)

fuzz: venv ## fuzz each parser for SECONDS with coverage guidance, if atheris is installed
	$(BIN)/python -m tests.fuzz.guided $(SECONDS)

bench: system venv ## measure MODE at scale, from outside with BENCH_ARGS, from inside, and attacked (root)
	@$(BIN)/pyproxy bench --mode $(MODE) $(BENCH_ARGS)
	@$(BIN)/python -m bench --mode $(MODE)
	@$(BIN)/python -m bench --hostile

bench-vm: vm-programs vm-parts ## measure the fast path in the virtual machine, on KERNEL=bookworm|trixie|sid
	$(BIN)/python -m tests.vm '$(BIN)/python -m bench --fast-path'

bench-check: system venv ## fail if messages, bytes, rows or allocations have grown (root)
	@$(BIN)/python -m bench --check

generate: ## write the files that are generated from others
	@$(BIN)/python tools/prometheusrule.py deploy/monitoring/alerts.yaml \
		>deploy/monitoring/prometheusrule.yaml
	@$(BIN)/python tools/chart_schema.py deploy/helm/pyproxy/values.schema.json
	@$(BIN)/python -m tools.reference
	@$(BIN)/python -m tools.kubernetes_models >lab/pyproxy_lab/apiserver/models.json

DOCS_STAMP := .venv/.docs-installed
# Material warns of a future MkDocs at each start.
docs docs-serve: export NO_MKDOCS_2_WARNING = 1

$(DOCS_STAMP): $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

docs: $(DOCS_STAMP) ## build the documentation as a site in build/site; a broken link is an error
	@$(BIN)/mkdocs build --quiet --strict
	@$(BIN)/python tools/site_check.py build/site

docs-serve: $(DOCS_STAMP) ## serve that site on 127.0.0.1:8000, and build it again after each change
	@$(BIN)/mkdocs serve

PICTURES := build/pictures

pictures: system venv ## draw dashboard and alerts into docs/img, from 38 minutes of a lab (root)
	@tools/system-packages.sh chromium
	@tools/prometheus.sh $(PICTURES)/prometheus
	@test -e $(PICTURES)/times.json || $(BIN)/python -m tools.pictures record
	@$(BIN)/python -m tools.pictures draw

dist: $(RELEASE_STAMP) ## build wheels, sdists and the chart of the last commit into dist/
	@tools/helm.sh $(BIN)
	@tools/dist.sh dist

dist-check: test-tools ## build them, and install and run each with PYTHONS
	PYPROXY_DIST_PYTHONS="$(PYTHONS)" $(BIN)/pytest tests/deploy/test_dist.py $(PYTEST_ARGS)

# An environment beside .venv, by uv; the tests that need no kernel run there.
lowest: $(RELEASE_STAMP) ## run the tests with the lowest versions that pyproject.toml allows of all dependencies
	@tools/bounds.sh lowest-direct .venv-lowest $(PYTHON) $(BESIDE) $(PYTEST_ARGS)

newest: $(RELEASE_STAMP) ## run them with the newest versions
	@tools/bounds.sh highest .venv-newest $(PYTHON) $(BESIDE) $(PYTEST_ARGS)

image: ## build the image IMAGE with docker, podman or buildah
	@tools/image.sh $(IMAGE) $(BUILD_FLAGS)

image-check: system venv ## build the image's stages without an engine, and run its pods (root)
	@tools/system-packages.sh iptables mmdebstrap debian-keys runc seccomp-profile
	@$(BIN)/python tools/image_check.py

clean: ## remove all that the other targets have made
	rm -rf .venv .venv-lowest .venv-newest .vm .coverage* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist *.egg-info lab/*.egg-info
