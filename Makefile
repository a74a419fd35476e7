# kmodd. `make help` prints the targets: every line with ## below.

PREFIX  ?= /usr
DESTDIR ?=
# The interpreter that kmodd is installed for and tested with: the distribution's, not a user's own one.
PYTHON  ?= /usr/bin/python3
# Where the distribution keeps python3-systemd, python3-pyudev and python3-pyelftools.
DISTLIB ?= /usr/lib/python3/dist-packages

# All distribution packages that demo, test and run need. This is the only list of them.
NEEDS = python3 python3-venv python3-systemd python3-pyudev python3-pyelftools \
        systemd udev mount kmod libkmod2 libkmod-dev gcc libc6-dev libelf-dev strace \
        qemu-system-x86 mmdebstrap e2fsprogs busybox-static cpio xz-utils zstd uidmap fakeroot make openssl python3-zstandard scdoc systemd-journal-remote
SUDO  = $(if $(filter-out 0,$(shell id -u)),sudo)
VENV  = .venv
PY    = $(VENV)/bin/python
TESTS ?= tests
# demo, shell, bench-vm: the Debian suite of the guest (default: this machine's own). tests: guests of this suite alone.
ifdef SUITE
export SUITE
endif
# Of all tests, not of a selection: a process for each processor.
PARALLEL = $(if $(filter tests,$(TESTS)),--numprocesses auto --maxprocesses 4)
# Simulated boots, about 20 a second for each processor.
SEEDS ?= 1-2000
LONG_SEEDS ?= 20
LONG_CHAOS_SEC ?= 1800
# The date in the manual pages, so that scdoc makes the same ones each time.
MAN_DATE = 1793491200
LIB   = $(PREFIX)/lib/kmodd
ETC   = $(patsubst /usr/etc,/etc,$(PREFIX)/etc)

MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: man help demo tour requests shell test test-long fuzz simulate run install uninstall deb sbom bench bench-vm lint clean needs

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: needs $(VENV)/ready ## boot a real kernel in a VM with kmodd as its module loader, plug devices in, show the journal; SUITE=trixie
	@$(PY) -m tests.vm.demo $(ARGS)

tour: needs $(VENV)/ready ## write docs/TOUR.md and its picture from a guest
	@$(PY) -m tests.vm.tour

requests: needs $(VENV)/ready ## record what stock systems request of the kernel, and write the tables of docs/POLICY.md; ARGS=server
	@$(PY) -m tests.vm.stock $(ARGS)
	$(PY) -m tests.stock_requests

shell: needs $(VENV)/ready ## open a root shell in the demo's VM; ARGS="e1000e" adds devices at boot
	@$(PY) -m tests.vm.shell $(ARGS)

test: needs $(VENV)/ready ## set everything up, run lint and all tests except the long ones; TESTS=path::name selects
	@$(PY) -m pytest $(PARALLEL) $(TESTS)

# For arm64: the helper, the demo's guest, and the programs that make its image.
test-long: NEEDS += gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static qemu-system-arm arch-test
# LONG_SEEDS and LONG_CHAOS_SEC may be given to shorten it. pytest exits with 5 while no test has the marker `long`.
test-long: needs $(VENV)/ready ## run what does not fit into test: marker long, property tests by 20 seeds, 30 minutes of chaos
	@$(PY) -m pytest $(PARALLEL) -m long $(TESTS) || [ $$? = 5 ]
	for seed in $$(shuf --input-range=1-4294967295 --head-count=$(LONG_SEEDS)); do
		KMODD_SEED=$$seed $(PY) -m pytest $(PARALLEL) tests/property
	done
	KMODD_CHAOS_SEC=$(LONG_CHAOS_SEC) $(PY) -m pytest tests/vm/test_chaos.py

# For the kernel's helper, which is in C.
fuzz: NEEDS += clang libclang-rt-dev
fuzz: needs $(VENV)/ready ## fuzz every parser for ten minutes, on all processors; resumes; TARGET=uevent for one, ARGS="--seconds 60"
	@$(PY) -m tests.fuzz $(TARGET) $(ARGS)

simulate: needs $(VENV)/ready ## boot simulated machines, SEEDS=FIRST-LAST; results add up in build/simulation.json; SEEDS=N repeats one; ARGS=--compiled
	@$(PY) -m tests.simulation $(SEEDS) $(ARGS)

run: needs $(VENV)/ready ## run the daemon on this host from the checkout; dry run where it cannot or must not load (ARGS=...)
	@exec $(PY) -m kmodd.cli run --here fixtures/here $(ARGS)

bench: needs $(VENV)/ready ## measure look-ups, start-up and memory on this host, each compared with its peer
	@$(PY) -m bench

bench-vm: needs $(VENV)/ready ## measure coldplug, hot-plug and kernel requests in a VM, compared with udevd; ARGS="coldplug flood" selects
	@$(PY) -m bench.vm $(ARGS)

lint: needs $(VENV)/ready ## run ruff, ruff format --check, mypy --strict and the checks of the folder structure
	@$(PY) -m pytest tests/test_floors.py

needs:
	@command -v dpkg-query >/dev/null || { echo "dpkg-query not found, assuming that the equivalents of these packages are installed: $(NEEDS)"; exit 0; }
	missing=
	for name in $(NEEDS); do
		dpkg-query --show --showformat='$${Status}\n' $$name 2>/dev/null | grep -q '^install ok installed' || missing+=" $$name"
	done
	# apt also fetches the guest's packages, so its package lists are needed even if no package is missing.
	[ -z "$$missing" ] && compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null && exit 0
	mkdir -p .cache
	quietly() { "$$@" > .cache/apt.log 2>&1 || { tail -n 20 .cache/apt.log >&2; echo "Failed to run $$*, see .cache/apt.log" >&2; exit 1; }; }
	[ -z "$$missing" ] || echo "installing$$missing (output in .cache/apt.log)"
	quietly $(SUDO) apt-get update -q
	[ -n "$$missing" ] || exit 0
	quietly $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing

# The test tools that pyproject.toml names, by their hashes; Debian's Python modules are visible through --system-site-packages.
$(VENV)/ready: tests/requirements.txt vendor/requirements.txt | needs
	@if ! cat tests/requirements.txt vendor/requirements.txt | cmp -s - $@; then
		echo "making $(VENV)"
		$(PYTHON) -m venv --system-site-packages $(VENV)
		$(PY) -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r tests/requirements.txt
		$(PY) -m pip install --quiet --disable-pip-version-check --no-index --find-links vendor --require-hashes -r vendor/requirements.txt
	fi
	cat tests/requirements.txt vendor/requirements.txt > $@

# How kmodd is started. -I (isolated) and -S (no site): a program that loads kernel modules runs no code from environment
# variables, .pth files or sitecustomize; this also saves 2 of 8 ms. Debian's modules are appended to the path.
# -B: nothing is written below PREFIX after the installation. utf8: bytes that are not UTF-8 are kept in any locale.
define LAUNCHER
#!$(PYTHON) -BISXutf8
import sys

sys.path.insert(0, "$(LIB)")
sys.path.append("$(DISTLIB)")
from kmodd.cli import byte_code

byte_code.use("$(LIB)")
from kmodd.cli.__main__ import leave, main

leave(main())
endef
export LAUNCHER

define OPEN_FILES
[ -e /proc/self/fd/0 ] || exec </dev/null
[ -e /proc/self/fd/1 ] || exec >/dev/null
[ -e /proc/self/fd/2 ] || exec 2>/dev/null
endef
export OPEN_FILES

# helper/kmodd-request.c: a reproducible build. BARE builds it without the C library where the architecture allows that.
HELPER_FLAGS = -std=gnu11 -Os -Wall -static -no-pie -fno-pie -fno-stack-protector -fno-asynchronous-unwind-tables -s \
               -Wl,--build-id=none -Wl,-z,noseparate-code
BARE = -ffreestanding -nostdlib

# The tree is assembled in a staging folder; the manifest lists its content (a folder only if the installation creates it).
# Byte code of single modules is validated by the hash of its source: it remains valid when files are copied without their
# times, and an edited source is recompiled. kmodd/cli/byte_code.py has that of all modules in one file, which is read faster.
install: ## install to DESTDIR=... PREFIX=/usr; needs no network and no root, touches no running service
	@umask 022
	work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT
	put() { install -D -p -m "$$1" "$$2" "$$work/tree$$3"; }
	files() { (cd "$$1" && find "$$2" -type f ! -path '*/__pycache__/*' ! -path '*/tests/*'); }

	for file in $$(files . kmodd); do put 644 "$$file" "$(LIB)/$$file"; done
	for wheel in vendor/*.whl; do
		hash=$$(sha256sum < "$$wheel" | cut -c 1-64)
		grep -q -- "--hash=sha256:$$hash" vendor/requirements.txt || { echo "$$wheel: not the file that vendor/requirements.txt pins" >&2; exit 1; }
		name=$${wheel##*/}; name=$${name%%-*}; from="$$work/$$name"
		$(PYTHON) -m zipfile -e "$$wheel" "$$from"
		# An escape in a docstring, of which Python warns since 3.12.
		[ "$$name" != varlink ] || sed -i 's/ [\]\*\.varlink/ *.varlink/' "$$from/varlink/server.py"
		find "$$from" -type f -exec touch -r "$$wheel" {} +
		for file in $$(files "$$from" . | grep -v '\.dist-info/'); do put 644 "$$from/$$file" "$(LIB)/$$file"; done
		for file in $$(find "$$from" -path '*.dist-info/*' -name 'LICENSE*'); do put 644 "$$file" "$(LIB)/licenses/$$name/$${file##*/}"; done
	done
	$(PYTHON) -m compileall -q -s "$$work/tree" -p / --invalidation-mode checked-hash "$$work/tree$(LIB)"
	$(PYTHON) -BI "$$work/tree$(LIB)/kmodd/cli/byte_code.py" "$$work/tree$(LIB)" "$(LIB)"

	printf '%s\n' "$$LAUNCHER" > "$$work/launcher"
	put 755 "$$work/launcher" "$(PREFIX)/bin/kmodd"
	put 755 systemd/udev-rule "$(LIB)/udev-rule"
	put 755 systemd/stack "$(LIB)/stack"
	put 755 systemd/kernel-helper "$(LIB)/kernel-helper"
	compile() { $(CC) $(HELPER_FLAGS) "$$@" -o "$$work/helper" helper/kmodd-request.c; }
	if ! { compile $(BARE) || compile; } 2> "$$work/why"; then
		echo "Failed to compile the helper: $$(tail -n 1 "$$work/why"); $(LIB)/kmodd-request is a Python script, which starts more slowly"
		# The kernel starts its helper without open files; Python needs descriptors 0 to 2.
		printf '#!/bin/sh\n%s\nexec %s request "$$@"\n' "$$OPEN_FILES" "$(PREFIX)/bin/kmodd" > "$$work/helper"
	fi
	put 755 "$$work/helper" "$(LIB)/kmodd-request"
	link() { mkdir -p "$$(dirname "$$work/tree$$2")"; ln -s "$$1" "$$work/tree$$2"; }
	for tool in $$($(PYTHON) -BIc 'import sys; sys.path.insert(0, "."); from kmodd.cli.__main__ import TOOLS; print(*TOOLS)'); do
		link ../../../bin/kmodd "$(LIB)/bin/$$tool"
	done
	share=$(PREFIX)/share
	# Not in bash-completion's own directory, where that package has files of these names. This directory takes precedence.
	put 644 data/completions/bash/kmodd "$(ETC)/bash_completion.d/kmodd"
	put 644 data/completions/zsh/_kmodd-tools "$$share/zsh/vendor-completions/_kmodd-tools"
	put 644 data/completions/zsh/_kmodd "$$share/zsh/vendor-completions/_kmodd"
	put 644 data/completions/fish/kmodd.fish "$$share/fish/vendor_completions.d/kmodd.fish"
	put 644 data/completions/fish/kmodd-tools.fish "$$share/fish/vendor_completions.d/kmodd-tools.fish"
	for tool in modprobe insmod rmmod lsmod modinfo depmod; do
		link kmodd-tools.fish "$$share/fish/vendor_completions.d/$$tool.fish"
	done
	put 755 data/initramfs-tools/kmodd "$$share/initramfs-tools/hooks/kmodd"
	put 755 data/dracut/module-setup.sh "$(PREFIX)/lib/dracut/modules.d/99kmodd/module-setup.sh"
	put 644 data/dracut/kmodd.conf "$(PREFIX)/lib/dracut/dracut.conf.d/50-kmodd.conf"
	hook() { sed 's,/usr/lib/kmodd,$(LIB),g' "data/kernel/$$1" > "$$work/hook"; put 755 "$$work/hook" "$$2"; }
	hook kernel-hook "$(LIB)/kernel-hook"
	hook postinst "$(ETC)/kernel/postinst.d/zz-kmodd"
	hook kmodd.install "$(PREFIX)/lib/kernel/install.d/95-kmodd.install"
	mkdir -p "$$work/tree$(ETC)/kmodd/policy.d"  # where the presets are linked to
	for file in data/policy.d/*.conf; do put 644 "$$file" "$$share/kmodd/policy.d/$${file##*/}"; done
	for unit in systemd/*.service systemd/*.socket systemd/*.timer; do
		sed 's,/usr/\(bin\|lib\|share/doc\)/kmodd,$(PREFIX)/\1/kmodd,g' "$$unit" > "$$work/unit"
		put 644 "$$work/unit" "$(PREFIX)/lib/systemd/system/$${unit##*/}"
	done
	put 644 systemd/systemd-modules-load.service.d/kmodd.conf "$(PREFIX)/lib/systemd/system/systemd-modules-load.service.d/kmodd.conf"
	put 644 systemd/kmodd.catalog "$(PREFIX)/lib/systemd/catalog/kmodd.catalog"
	for page in docs/man/*.scd; do
		name=$${page##*/}; name=$${name%.scd}
		if command -v scdoc > /dev/null; then
			SOURCE_DATE_EPOCH=$(MAN_DATE) scdoc < "$$page" > "$$work/page"
		else
			cp "docs/man/built/$$name" "$$work/page"
		fi
		put 644 "$$work/page" "$$share/man/man$${name##*.}/$$name"
	done
	for file in data/examples/*/*; do put 644 "$$file" "$(PREFIX)/share/doc/kmodd/$${file#data/}"; done
	for file in README.md CHANGELOG.md LICENSE $(wildcard docs/*.*); do put 644 "$$file" "$(PREFIX)/share/doc/kmodd/$${file##*/}"; done

	new="$$work/tree$(LIB)/manifest"; old="$(DESTDIR)$(LIB)/manifest"
	touch "$$new" "$$work/gone"
	(cd "$$work/tree"
	find . -mindepth 1 ! -type d -printf '/%P\n'
	find . -mindepth 1 -type d -printf '/%P/\n' | while read -r folder; do
		if [ ! -d "$(DESTDIR)$$folder" ] || grep -qsxF "$$folder" "$$old"; then echo "$$folder"; fi
	done) | LC_ALL=C sort > "$$work/list"
	cp "$$work/list" "$$new"
	[ ! -f "$$old" ] || LC_ALL=C comm -23 "$$old" "$$new" > "$$work/gone"
	mkdir -p "$(DESTDIR)/"
	tar -C "$$work/tree" -cf - . | tar -C "$(DESTDIR)/" -xpf - --no-same-owner --no-overwrite-dir --keep-directory-symlink
	$(call remove,$$work/gone)
	$(catalogue)

man: ## build the manual pages that are shipped, docs/man/built, from docs/man; needs scdoc
	@for page in docs/man/*.scd; do
		name=$${page##*/}
		SOURCE_DATE_EPOCH=$(MAN_DATE) scdoc < "$$page" > "docs/man/built/$${name%.scd}"
	done

uninstall: ## remove exactly what `make install` placed, by its manifest; same DESTDIR and PREFIX
	@list=$$(mktemp); trap 'rm -f "$$list"' EXIT
	cp "$(DESTDIR)$(LIB)/manifest" "$$list" || { echo "Failed to read the manifest, kmodd is not installed in $(DESTDIR)$(LIB)" >&2; exit 1; }
	rm -f "$(DESTDIR)$(LIB)"/byte-code.*
	$(call remove,$$list)
	$(catalogue)
	$(traces)

# Built from a copy: debhelper works in the folder of its sources, and cleans it.
deb: NEEDS = build-essential debhelper dh-python python3
deb: needs ## build a Debian package for this suite: dist/kmodd_*.deb
	@work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT
	mkdir -p "$$work/kmodd" dist
	tar --exclude=__pycache__ -cf - Makefile README.md CHANGELOG.md LICENSE kmodd helper systemd data docs vendor debian |
		tar -C "$$work/kmodd" -xf -
	(cd "$$work/kmodd" && dpkg-buildpackage --build=binary --no-sign)
	cp "$$work"/kmodd_*.deb dist/

sbom: ## write the bill of materials, CycloneDX 1.5: dist/kmodd.cdx.json; needs no network
	@mkdir -p dist
	$(PYTHON) -I vendor/sbom.py > dist/kmodd.cdx.json

# Files first, then folders, innermost first; a folder that holds other files remains.
define remove
LC_ALL=C sort -r "$(1)" | while read -r path; do
	case $$path in */) ;; *) rm -f "$(DESTDIR)$$path" ;; esac
done
LC_ALL=C sort -r "$(1)" | while read -r path; do
	# An administrator may have removed it, or put a link in its place.
	case $$path in */) [ ! -d "$(DESTDIR)$$path" ] || [ -L "$(DESTDIR)$${path%/}" ] || rmdir --ignore-fail-on-non-empty "$(DESTDIR)$$path" ;; esac
done
endef

# On the running system, update the compiled catalogue for journalctl -x. An image updates its own at first boot.
catalogue = [ -n "$(DESTDIR)" ] || [ "$$(id -u)" != 0 ] || [ "$(PREFIX)" != /usr ] || journalctl --update-catalog || true

# On the running system, remove the trace of loads, which outlives the daemon (host/load_tracer.py).
TRACEFS := /sys/kernel/tracing /sys/kernel/debug/tracing
traces = [ -n "$(DESTDIR)" ] || rmdir $(TRACEFS:=/instances/kmodd-loads) 2>/dev/null || true

clean: ## remove the venv, caches, downloads and images (.venv, .cache and the tools' own)
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
