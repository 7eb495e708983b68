# The two commands of a newcomer are `make demo` and `make test`; README.md tells more.
.PHONY: help setup test demo bench lint clean

help:
	@echo 'make demo   two gateways on loopback, a real stream through an encrypted tunnel'
	@echo 'make test   all tests; installs what it needs (Debian packages by apt, the rest into .venv)'
	@echo 'make bench  the benchmarks; writes docs/PERFORMANCE.md'
	@echo 'make lint   ruff and mypy'
	@echo 'make clean  removes what the others made in this tree'

setup:
	@tests/setup.sh

test: setup
	.venv/bin/python -m pytest

demo: setup
	@.venv/bin/python -m tests.demo

bench: setup
	.venv/bin/python -m tests.bench

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find scistreamd tests -name __pycache__ -type d -exec rm -rf {} +
