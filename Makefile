# The two commands of a newcomer are `make demo` and `make test`; README.md tells more.
.PHONY: help setup test test-firewall test-oldest fuzz testssl demo bench man deb rpm lint lab lab-shell lab-down clean

help:
	@echo 'make demo   two gateways on loopback, a real stream through an encrypted tunnel'
	@echo 'make test   all tests; installs what it needs (Debian packages by apt, the rest into .venv)'
	@echo 'make test-firewall  random firewalls against the kernel, for ten minutes'
	@echo 'make test-oldest  those of the daemon with the oldest supported versions of its libraries'
	@echo 'make fuzz   hostile input for every parser, for 210 s or FUZZ_SECONDS'
	@echo 'make testssl  testssl.sh against the control port and a tunnel of each data server type'
	@echo 'make bench  the benchmarks; writes docs/PERFORMANCE.md'
	@echo 'make man    the man pages, into build/man (needs lowdown)'
	@echo 'make lab    four hosts with systemd, to play the tutorial in; make lab-shell HOST=producer, make lab-down'
	@echo 'make deb    the Debian packages, in dist/'
	@echo 'make rpm    the RPM packages for Fedora and RHEL, in dist/'
	@echo 'make lint   ruff and mypy'
	@echo 'make clean  removes what the others made in this tree'

setup:
	@tests/setup.sh

test: setup
	.venv/bin/python -m pytest

# The evaluator of firewalls against the kernel, longer than `make test` does, with other rulesets each time.
test-firewall: setup
	FIREWALL_SECONDS=$${FIREWALL_SECONDS:-600} FIREWALL_SEED=$$(date +%s) .venv/bin/python -m pytest --timeout 0 -s tests/service/test_nft_kernel.py

# The daemon with the oldest supported versions of its libraries; `make test` runs a part of it.
test-oldest: setup
	.venv-oldest/bin/python -m pytest tests/core tests/service

# Hostile input for every parser, with atheris: seven targets share FUZZ_SECONDS. Findings go to tests/fuzz/corpus.
fuzz: setup
	.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	.venv/bin/python -m tests.fuzz

# Each control port and listener before testssl.sh, whole; `make test` has the checks that take seconds.
testssl: setup
	TESTSSL=whole .venv/bin/python -m pytest --timeout 900 tests/service/test_testssl.py

demo:
	@tests/setup.sh demo
	@.venv/bin/python -m tests.demo

bench: setup
	.venv/bin/python -m tests.bench

# For packages too: needs python3 and lowdown, nothing of .venv.
man:
	python3 -B packaging/man/render.py build/man

deb: setup
	@PYTHON=.venv/bin/python python3 -B packaging/deb.py

rpm: setup
	@PYTHON=.venv/bin/python python3 -B packaging/rpm.py

# As root, which sudo makes of a user; -B leaves no files of root's in the tree.
as_root = $$(test "$$(id -u)" = 0 || echo sudo)

lab: setup
	@$(as_root) .venv/bin/python -B -m tests.system up

lab-shell: setup
	@$(as_root) .venv/bin/python -B -m tests.system shell $${HOST:?say which: make lab-shell HOST=producer}

lab-down: setup
	@$(as_root) .venv/bin/python -B -m tests.system down

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv .venv-oldest .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info scistreamd/dataserver/*.so
	find scistreamd tests -name __pycache__ -type d -exec rm -rf {} +
