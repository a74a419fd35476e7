# kmodd. `make help` prints the contract: the lines that carry ## below.

PREFIX  ?= /usr
DESTDIR ?=
# The interpreter that kmodd is installed for and tested with: the distribution's, never a shim of the user's.
PYTHON  ?= /usr/bin/python3
# Where the distribution keeps python3-systemd, python3-pyudev and python3-pyelftools.
DISTLIB ?= /usr/lib/python3/dist-packages

# Everything that demo, test and run take from the distribution, and the only place where it is listed.
NEEDS = python3 python3-venv python3-systemd python3-pyudev python3-pyelftools \
        systemd udev kmod libkmod2 libkmod-dev gcc libc6-dev libelf-dev strace \
        qemu-system-x86 mmdebstrap e2fsprogs busybox-static cpio xz-utils zstd uidmap fakeroot make openssl python3-zstandard
SUDO  = $(if $(filter-out 0,$(shell id -u)),sudo)
VENV  = .venv
PY    = $(VENV)/bin/python
TESTS ?= tests
LIB   = $(PREFIX)/lib/kmodd
ETC   = $(patsubst /usr/etc,/etc,$(PREFIX)/etc)

MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: help demo test run install uninstall bench bench-vm lint clean needs

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: needs $(VENV)/ready ## boot a real kernel with kmodd as its loader, plug devices in, show what the journal says
	@$(PY) -m tests.vm.demo $(ARGS)

test: needs $(VENV)/ready ## set everything up and run lint and every test; TESTS=path::name narrows
	@$(PY) -m pytest $(if $(filter tests,$(TESTS)),--numprocesses auto --maxprocesses 4) $(TESTS)

run: needs $(VENV)/ready ## the daemon on this host, from the checkout; dry where it cannot or may not load (ARGS=...)
	@exec $(PY) -m kmodd.cli run --here fixtures/here $(ARGS)

bench: needs $(VENV)/ready ## look-ups per second, start to READY and memory, each beside its peer, on this host
	@$(PY) -m bench

bench-vm: needs $(VENV)/ready ## the same for what needs a kernel of its own, beside udevd and kmod in a VM; ARGS="coldplug flood" narrows
	@$(PY) -m bench.vm $(ARGS)

lint: needs $(VENV)/ready ## ruff, mypy --strict and the floors
	@$(PY) -m pytest tests/test_floors.py

needs:
	@command -v dpkg-query >/dev/null || { echo "not a Debian-like machine: please install the like of: $(NEEDS)"; exit 0; }
	missing=
	for name in $(NEEDS); do
		dpkg-query --show --showformat='$${Status}\n' $$name 2>/dev/null | grep -q '^install ok installed' || missing+=" $$name"
	done
	# The guest's packages are fetched by apt as well, so its lists have to be there even where nothing is missing.
	[ -z "$$missing" ] && compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null && exit 0
	[ -z "$$missing" ] || echo "installing:$$missing"
	$(SUDO) apt-get update -q
	[ -n "$$missing" ] || exit 0
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing

# The test tools of pyproject.toml, pinned there; Debian's own modules are seen through --system-site-packages.
# Other changes of pyproject.toml install nothing.
$(VENV)/ready: pyproject.toml vendor/requirements.txt | needs
	@$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["test"], sep="\n")' > .wanted
	trap 'rm -f .wanted' EXIT
	cat vendor/requirements.txt >> .wanted
	if ! cmp -s .wanted $@; then
		echo "making $(VENV)"
		$(PYTHON) -m venv --system-site-packages $(VENV)
		grep -v -- --hash .wanted > $(VENV)/test.txt
		$(PY) -m pip install --quiet --disable-pip-version-check -r $(VENV)/test.txt
		$(PY) -m pip install --quiet --disable-pip-version-check --no-index --find-links vendor --require-hashes -r vendor/requirements.txt
	fi
	cp .wanted $@

# How kmodd is started. Isolated (-I) and without site (-S): no environment variable, no .pth file and no sitecustomize of
# anybody else runs in a program that loads kernel modules, and 2 of 8 ms are saved. Debian's modules stay within reach, last.
# -B: nothing is written below PREFIX after the installation. utf8: bytes that are not UTF-8 leave as they came, in any locale.
define LAUNCHER
#!$(PYTHON) -BISXutf8
import sys

sys.path.insert(0, "$(LIB)")
sys.path.append("$(DISTLIB)")
from kmodd.cli.__main__ import leave, main

leave(main())
endef
export LAUNCHER

# helper/kmodd-request.c: the same bytes from the same compiler. Where the source can do without the C library it does.
HELPER_FLAGS = -std=gnu11 -Os -Wall -static -no-pie -fno-pie -fno-stack-protector -fno-asynchronous-unwind-tables -s \
               -Wl,--build-id=none -Wl,-z,noseparate-code
BARE = -ffreestanding -nostdlib

# The tree is put together in a staging folder; what stands there is what gets installed and what the manifest lists (a folder
# is listed only where the installation made it). Byte code carries the hash of its source: it stays valid however the files
# are copied, and an edited file still counts.
install: ## DESTDIR=... PREFIX=/usr: no network, no root, touches no running service
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
		for file in $$(files "$$from" . | grep -v '\.dist-info/'); do put 644 "$$from/$$file" "$(LIB)/$$file"; done
		for file in $$(find "$$from" -path '*.dist-info/*' -name 'LICENSE*'); do put 644 "$$file" "$(LIB)/licenses/$$name/$${file##*/}"; done
	done
	$(PYTHON) -m compileall -q -s "$$work/tree" -p / --invalidation-mode checked-hash "$$work/tree$(LIB)"

	printf '%s\n' "$$LAUNCHER" > "$$work/launcher"
	put 755 "$$work/launcher" "$(PREFIX)/bin/kmodd"
	put 755 systemd/udev-rule "$(LIB)/udev-rule"
	put 755 systemd/stack "$(LIB)/stack"
	put 755 systemd/kernel-helper "$(LIB)/kernel-helper"
	compile() { $(CC) $(HELPER_FLAGS) "$$@" -o "$$work/helper" helper/kmodd-request.c; }
	if ! { compile $(BARE) || compile; } 2> "$$work/why"; then
		echo "$(LIB)/kmodd-request is a Python script, which takes far longer to start: $$(tail -n 1 "$$work/why")"
		# The kernel gives its helper no open files, and Python is not made for that.
		printf '#!/bin/sh\nexec %s request "$$@" </dev/null >/dev/null 2>&1\n' "$(PREFIX)/bin/kmodd" > "$$work/helper"
	fi
	put 755 "$$work/helper" "$(LIB)/kmodd-request"
	link() { mkdir -p "$$(dirname "$$work/tree$$2")"; ln -s "$$1" "$$work/tree$$2"; }
	for tool in $$($(PYTHON) -BIc 'import sys; sys.path.insert(0, "."); from kmodd.cli.__main__ import TOOLS; print(*TOOLS)'); do
		link ../../../bin/kmodd "$(LIB)/bin/$$tool"
	done
	share=$(PREFIX)/share
	# Not in bash-completion's own directory: the package has files of these names there. What stands here comes first.
	put 644 data/completions/bash/kmodd "$(ETC)/bash_completion.d/kmodd"
	put 644 data/completions/zsh/_kmodd-tools "$$share/zsh/vendor-completions/_kmodd-tools"
	put 644 data/completions/fish/kmodd-tools.fish "$$share/fish/vendor_completions.d/kmodd-tools.fish"
	for tool in modprobe insmod rmmod lsmod modinfo depmod; do
		link kmodd-tools.fish "$$share/fish/vendor_completions.d/$$tool.fish"
	done
	put 755 data/initramfs-tools/kmodd "$$share/initramfs-tools/hooks/kmodd"
	for file in data/policy.d/*.conf; do put 644 "$$file" "$$share/kmodd/policy.d/$${file##*/}"; done
	for unit in systemd/*.service systemd/*.socket; do
		sed 's,/usr/\(bin\|lib\|share/doc\)/kmodd,$(PREFIX)/\1/kmodd,g' "$$unit" > "$$work/unit"
		put 644 "$$work/unit" "$(PREFIX)/lib/systemd/system/$${unit##*/}"
	done
	put 644 systemd/systemd-modules-load.service.d/kmodd.conf "$(PREFIX)/lib/systemd/system/systemd-modules-load.service.d/kmodd.conf"
	put 644 systemd/kmodd.catalog "$(PREFIX)/lib/systemd/catalog/kmodd.catalog"
	for file in README.md CHANGELOG.md LICENSE $(wildcard docs/*); do put 644 "$$file" "$(PREFIX)/share/doc/kmodd/$${file##*/}"; done

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

uninstall: ## removes exactly what `make install` placed, by its manifest; same DESTDIR and PREFIX
	@list=$$(mktemp); trap 'rm -f "$$list"' EXIT
	cp "$(DESTDIR)$(LIB)/manifest" "$$list" || { echo "no manifest: kmodd is not installed there" >&2; exit 1; }
	$(call remove,$$list)
	$(catalogue)

# Files first, then the folders, innermost first; a folder that somebody else uses by now stays.
define remove
LC_ALL=C sort -r "$(1)" | while read -r path; do
	case $$path in */) ;; *) rm -f "$(DESTDIR)$$path" ;; esac
done
LC_ALL=C sort -r "$(1)" | while read -r path; do
	case $$path in */) rmdir --ignore-fail-on-non-empty "$(DESTDIR)$$path" ;; esac
done
endef

# On the running system, journalctl -x needs its compiled catalogue to be made again. An image does this for itself.
catalogue = [ -n "$(DESTDIR)" ] || [ "$$(id -u)" != 0 ] || [ "$(PREFIX)" != /usr ] || journalctl --update-catalog || true

clean: ## removes the venv, caches, downloads and images (.venv, .cache and the tools' own)
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
