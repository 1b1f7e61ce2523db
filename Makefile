# Everything a newcomer types. `make demo` and `make test` set up what they need on a Debian 12 as root; the
# second run reuses it: the environment in .venv, the guest's kernel in REPLUG_CACHE (~/.cache/replug).

PYTHON ?= python3
JOBS ?= $(shell nproc)
VENV := .venv
RUN := $(VENV)/bin/python
RESULTS := .setup/results

.DEFAULT_GOAL := help
.PHONY: help setup demo try test docs lint unit sim explore mutants coverage chaos chaos-cells chaos-native soak top e2e bench bench-check system newer boot deb rpm apk app vm-shell lock clean
.DELETE_ON_ERROR:

help: ## this text
	@echo "replug: an inverted USB disk whose parts may all be killed while it is in use"
	@echo
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

setup: .setup/system $(VENV)/.ready .setup/guest ## install what is missing, build .venv, fetch the guest's kernel
	@:

demo: setup $(if $(ARCH),.setup/system-$(ARCH)) ## the whole thing on a real kernel: cable pulls, kill -9, every byte checked (ARCH=arm64)
	@timeout --foreground -k 20 1500 $(VENV)/bin/replug demo $(if $(ARCH),--arch $(ARCH) --timeout 1200)

# Of new seeds of the simulator in each `make test`, counted over all processors.
SIM_SECONDS ?= 60

try: setup ## your own image as a disk in a guest, with a shell there; the file stays as it is: IMAGE=rootfs.img
	@$(VENV)/bin/replug demo --image $(or $(IMAGE),$(error say which with IMAGE=rootfs.img))

test: setup lint ## lint, unit tests here, new seeds of the simulator, e2e tests in guests, and one count over all
	@rm -rf $(RESULTS)/unit.xml $(RESULTS)/e2e; mkdir -p $(RESULTS); \
	$(MAKE) --no-print-directory unit; unit=$$?; \
	$(MAKE) --no-print-directory sim SECONDS=$(SIM_SECONDS); sim=$$?; \
	$(MAKE) --no-print-directory e2e; e2e=$$?; \
	$(RUN) -m tools.vm count $(RESULTS)/unit.xml $(RESULTS)/e2e && [ $$unit = 0 ] && [ $$sim = 0 ] && [ $$e2e = 0 ]

docs: setup ## the documents as HTML, into dist/docs; a dead link, a ragged table and the like are errors
	@$(RUN) -m tools.docs build

lint: setup ## ruff, mypy --strict, the import layers, and the documents
	timeout --foreground 120 $(RUN) -m ruff check .
	timeout --foreground 500 $(RUN) -m mypy
	timeout --foreground 120 $(VENV)/bin/lint-imports
	timeout --foreground 400 $(RUN) -m tools.docs build .setup/docs

unit: setup .setup/debian/.done ## unit tests, kill points and the fixed seeds of the simulator, on this machine
	@mkdir -p $(RESULTS)
	timeout --foreground -k 20 1200 $(RUN) -m pytest -q -n $(JOBS) --junitxml=$(RESULTS)/unit.xml tests/unit tests/sim tests/chaos tests/fuzz tests/mutants tests/cover

sim: setup ## all roles in one thread under a seed: SEED= N= SECONDS= FAULTS= WITH= JOBS= (no N: until one fails)
	@SEED=$(SEED) N=$(N) SECONDS=$(SECONDS) FAULTS=$(FAULTS) WITH=$(WITH) JOBS=$(JOBS) $(RUN) -m tests.sim

explore: setup ## every kill point of a small workload, alone and in pairs (hours; goes on where it was ended): KILLS=1 SLOW=WRITE WHO=any V0=1 AT=57.1,203
	@KILLS=$(KILLS) SLOW=$(SLOW) WHO=$(WHO) V0=$(V0) SHARE=$(SHARE) AT=$(AT) FAULT=$(FAULT) JOBS=$(JOBS) \
		OUT=$(RESULTS)/explore/$(or $(KILLS),2)$(subst $() ,,$(foreach word,$(WHO) $(SLOW) $(if $(V0),v0) $(FAULT),.$(word))).jsonl $(RUN) -m tests.sim.explore

mutants: setup ## generated faults in the cores, each to be noticed by a test (hours; goes on where it was ended): ONLY=host.usb.core
	@ONLY="$(ONLY)" JOBS=$(JOBS) SEEDS=$(SEEDS) $(RUN) -m tests.mutants

coverage: setup ## which statements no unit test, simulation or chaos test runs, killed processes included: TESTS=tests/unit/test_x.py
	@TESTS="$(TESTS)" JOBS=$(JOBS) $(RUN) -m tests.cover

chaos: setup ## faults at random in a guest under a verifying workload: SEED=... N=... (50), or EACH=3; LOAD=fio
	@mkdir -p $(RESULTS)/chaos
	@timeout --foreground -k 20 14400 $(RUN) -m tools.vm run --timeout 14000 --share $(RESULTS)/chaos -- \
		env SEED=$(SEED) N=$(N) EACH=$(EACH) LOAD=$(LOAD) $(RUN) -m tests.chaos

chaos-cells: setup ## every event at every stage in one guest for each processor (hours; goes on where it was ended): CELLS=3
	@SEED=$(SEED) CELLS=$(CELLS) JOBS=$(JOBS) $(RUN) -m tests.chaos.guests

chaos-native: setup ## the same without a guest, the kernels modelled: SEED=... N=... (200), or EACH=3, or CELLS=1; V0=1
	@mkdir -p $(RESULTS)/chaos
	@SEED=$(SEED) N=$(or $(N),200) EACH=$(EACH) CELLS=$(CELLS) V0=$(V0) \
		$(if $(CELLS),RESULTS=$(RESULTS)/chaos/native-cells.jsonl) timeout --foreground -k 20 14400 $(RUN) -m tests.native

soak: setup ## faults for hours, natively, or GUEST=1 on a real kernel: HOURS=1; Ctrl-C ends it with the report
	@$(if $(GUEST),$(RUN) -m tools.vm run --timeout $$(awk 'BEGIN { print int($(or $(HOURS),1) * 3600 + 600) }') -- )env SEED=$(SEED) HOURS=$(HOURS) \
		GUEST=$(GUEST) $(RUN) -m tests.soak

top: setup ## replug top over both sides, their kernels modelled, while one role after the other is killed
	@$(RUN) -m tests.native.picture

# Where it runs out pytest is killed, as roles are spared: an export takes 20 MiB, and tests leave files in memory.
E2E_MEMORY := 1536M

e2e: setup ## e2e tests on a real kernel, in one guest for each processor
	@mkdir -p $(RESULTS)/e2e
	timeout --foreground -k 20 2000 $(RUN) -m tools.vm pytest --memory $(E2E_MEMORY) --jobs $(JOBS) --results $(RESULTS)/e2e -- tests/e2e

BENCH = timeout --foreground -k 20 1500 $(RUN) -m tools.vm run --timeout 1400 --share $(abspath $(RESULTS))/bench \
	--module usb_f_mass_storage --module usb_storage --module sd_mod -- \
	$(RUN) -m tools.cli bench --rounds $(or $(ROUNDS),2) --save $(abspath $(RESULTS))/bench/bench.json

bench: setup ## the parts, the whole and the kernel's own USB disk side by side in a guest: ROUNDS=2, FULL=1 for every load
	@mkdir -p $(RESULTS)/bench
	@$(BENCH) --profile --chart $(abspath $(RESULTS))/bench/bench.svg $(if $(FULL),--full)

bench-check: setup ## the same ratios again; one that is 15 % worse than in docs/bench.json fails
	@mkdir -p $(RESULTS)/bench
	@$(BENCH) --check docs/bench.json

system: setup .setup/debian/.done ## units under a real systemd, a real udevd, three gadgets, the deb, the doctor: minutes; not in test
	timeout --foreground -k 20 1000 $(RUN) -m tools.vm run --timeout 900 -- \
		$(RUN) -m pytest -v -p no:cacheprovider -p no:xdist tests/system/test_systemd.py tests/system/test_udev.py tests/system/test_openrc.py
	timeout --foreground -k 20 1400 $(RUN) -m tools.vm run --timeout 1300 -- \
		$(RUN) -m pytest -v -s -p no:cacheprovider -p no:xdist tests/system/test_existing_ffs.py tests/system/test_upgrade.py
	timeout --foreground -k 20 1000 $(RUN) -m tools.vm run --timeout 900 -- \
		$(RUN) -m pytest -v -p no:cacheprovider -p no:xdist tests/system/test_udev_disks.py
	timeout --foreground -k 20 1000 $(RUN) -m tools.vm run --udcs 3 --timeout 900 -- \
		$(RUN) -m pytest -v -p no:cacheprovider -p no:xdist tests/system/test_several.py
	timeout --foreground -k 20 1800 $(RUN) -m tools.vm run --module nbd --memory $(E2E_MEMORY) --timeout 1700 -- \
		$(RUN) -m pytest -v -p no:cacheprovider -p no:xdist tests/system/test_many_exports.py tests/system/test_real_disk.py \
		tests/system/test_identity.py tests/system/test_power_cut.py tests/system/test_down_forgotten.py
	timeout --foreground -k 20 2200 $(RUN) -m tools.vm run --memory $(E2E_MEMORY) --timeout 2100 -- \
		$(RUN) -m pytest -v -p no:cacheprovider -p no:xdist tests/system/test_deb.py tests/system/test_tutorial.py
	timeout --foreground -k 20 1000 $(RUN) -m tools.vm run --timeout 900 -- \
		$(RUN) -m pytest -v -p no:cacheprovider -p no:xdist tests/system/test_doctor.py
	@$(MAKE) --no-print-directory newer

newer: setup ## what only newer kernels can, on the newest of trixie-backports: growth, QUIESCE, the ublk binding: minutes
	timeout --foreground -k 20 1000 $(RUN) -m tools.vm run --kernel newer --timeout 900 -- \
		$(RUN) -m pytest -v -p no:cacheprovider -p no:xdist tests/e2e/test_ublk_binding.py tests/e2e/test_ublk_wedges.py tests/newer

boot: setup ## a Debian that starts from a replug disk, by dracut and by initramfs-tools, each process killed there: minutes
	timeout --foreground -k 20 5000 $(RUN) -m pytest -v -s -p no:cacheprovider -p no:xdist tests/system/test_boot.py

deb: setup ## a Debian package for both sides, into dist/
	@$(RUN) -m tools.package deb

rpm: setup ## an RPM package for both sides, into dist/
	@$(RUN) -m tools.package rpm

apk: setup ## an Alpine package with OpenRC scripts (unsigned), into dist/
	@$(RUN) -m tools.package apk

app: setup ## one executable file with everything but Python, into dist/
	@$(RUN) -m tools.package app

vm-shell: setup ## a shell in a guest with ublk and a dummy USB device controller
	@$(RUN) -m tools.vm shell

lock: ## pin the newest versions that pyproject.toml allows (writes requirements.lock)
	$(PYTHON) -m venv .setup/lock && .setup/lock/bin/pip -q install uv
	printf 'setuptools>=75\nwheel\n' | .setup/lock/bin/uv -q pip compile pyproject.toml - --extra libusb --extra fsspec \
		--group dev --universal --python-version 3.11 --generate-hashes --no-header -o .setup/lock/pins
	{ echo "# Every package of the environment, pinned with hashes. Made from pyproject.toml by 'make lock'."; \
	  cat .setup/lock/pins; } > requirements.lock

.setup/debian/.done: tools/package/debian.sh
	@tools/package/debian.sh $(abspath .setup/debian)

clean: ## remove what set-up and tests made here (the guest's kernel stays in its cache)
	rm -rf .setup $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

.setup/system: tools/setup.sh
	@mkdir -p .setup
	@tools/setup.sh $(PYTHON)
	@touch $@

.setup/system-%: tools/setup.sh .setup/system
	@ARCH=$* tools/setup.sh $(PYTHON)
	@touch $@

$(VENV)/.ready: requirements.lock pyproject.toml | .setup/system
	@echo "replug: building $(VENV) from requirements.lock"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(RUN) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation \
		--config-settings editable_mode=compat -e .
	@touch $@

# The stamp says that it was done here; the kernel itself is shared by all working copies of this user.
.setup/guest: tools/vm/images.py $(VENV)/.ready | .setup/system
	@$(RUN) -m tools.vm setup >$@.log && mv $@.log $@
