# make train   trains on real images; make test   proves every formula; make check   format and lint;
# make docs    the documentation, into site/; make torture   kills, and 500 malformed files of each kind, in an hour
# Each makes .venv unless a virtual environment is active, and installs only what is missing.

ifdef VIRTUAL_ENV
ENV := $(VIRTUAL_ENV)
else
ENV := .venv
endif
PYTHON ?= python3
RUN := $(ENV)/bin/python

.PHONY: train test torture check docs install
train: install
	$(RUN) train.py

test: install
	$(RUN) -m pytest

torture: install
	$(RUN) tests/torture_kills.py
	$(RUN) tests/torture_files.py 500

check: install
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

docs: install
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

install: $(ENV)/.manualnn-installed

$(ENV)/.manualnn-installed: pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(ENV)
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $@
