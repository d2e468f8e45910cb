# make train   trains on real images; make test   proves every formula; make check   format, lint and types;
# make quick   values, first derivatives, kinks, conversion, doctests; make op OP=gelu   all tests of one op's rows;
# make docs    the documentation, into site/; make torture   kills, and 500 malformed files of each kind, in an hour
# Each makes .venv unless a virtual environment is active, and installs only what is missing. TORCH="torch==2.14.*"
# chooses the release of torch that is installed.

ifdef VIRTUAL_ENV
ENV := $(VIRTUAL_ENV)
else
ENV := .venv
endif
PYTHON ?= python3
RUN := $(ENV)/bin/python
TWO := -n 2 --dist worksteal

.PHONY: train test quick op torture check docs install
train: install
	$(RUN) train.py

test: install
	$(RUN) -m pytest $(TWO)

quick: install
	$(RUN) -m pytest $(TWO) tests/ops/test_battery_values.py tests/conversion/test_convert.py \
		tests/conversion/test_convert_refused.py tests/conversion/test_convert_strict.py tests/project/test_doctests.py \
		-k "not (second_derivative or error_against or each_input or incoming_gradient or backward_twice)"

# In one process: to start two takes longer than what they would share.
op: install
	$(RUN) -m pytest tests/ops/test_battery_*.py tests/ops/test_same_bits.py \
		--op $(or $(OP),$(error which op? make op OP=gelu))

torture: install
	$(RUN) tests/support/torture_kills.py
	$(RUN) tests/support/torture_files.py 500

check: install
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

docs: install
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

install: $(ENV)/.manualnn-installed

$(ENV)/.manualnn-installed: pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(ENV)
	$(RUN) -m pip install --quiet --editable ".[dev]" $(if $(TORCH),"$(TORCH)")
	touch $@
