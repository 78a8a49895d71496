# make demo   install, then train, test and show SPNet on the built-in shapes dataset
# make test   install, then run the tests
# make install  install stripseg and what it needs into .venv
# make test-long  what takes minutes each: exports of every pair of head and backbone, the example in C++
# make test-oldest  the tests with the oldest PyTorch that requirements.txt allows, in an environment of their own
# make test-gpu   the tests for a GPU, on a machine that has one
# make gpu-check   install, then check and measure a GPU for some minutes: benchmark/gpu_check.py
# make setup  install everything for working on stripseg: tests, types, docs, releases, pre-commit
# make docs   install, then build the site in build/site
# make types  install, then check the types of what `import stripseg` offers
# make audit  install, then look up known holes of what is installed, where the index can be reached
# make release     install, then build and check sdist and wheel in dist/
# make benchmark   install, then measure speed and memory against plain implementations
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SOURCES := setup.py requirements.txt pyproject.toml
# The dependencies are 14,000 files, most of which are never imported: Python compiles the others when it first does.
INSTALL := -m pip install --disable-pip-version-check --quiet --no-compile -e
INSTALLING := "installing into $(VENV), some minutes and 5 GB: PyTorch comes with its CUDA libraries"
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-long test-oldest test-gpu gpu-check benchmark lint types docs audit release install setup clean

demo: $(VENV)/.installed
	$(RUN) -m stripseg.tool.prepare shapes dataset/shapes/data
	PYTHON=$(RUN) sh tool/train.sh shapes spnet18 $(OPTIONS)
	PYTHON=$(RUN) sh tool/test.sh shapes spnet18 $(OPTIONS)

test: $(VENV)/.installed-test
	$(RUN) -m pytest $(OPTIONS)

test-long: $(VENV)/.installed-test
	$(RUN) -m pytest -m long $(OPTIONS)

test-oldest:
	mkdir -p build
	sed -n '/^torch/s/>=\(.*\)/==\1.*/p' requirements.txt > build/oldest.txt
	PIP_CONSTRAINT=$(abspath build/oldest.txt) $(MAKE) test VENV=build/oldest

test-gpu: $(VENV)/.installed-test
	$(RUN) -m pytest -m gpu -n 0 $(OPTIONS)

gpu-check: $(VENV)/.installed-test
	. tool/environment.sh && $(RUN) -m benchmark.gpu_check --json exp/gpu_check.json $(OPTIONS)

benchmark: $(VENV)/.installed
	. tool/environment.sh && $(RUN) -m benchmark --json exp/benchmark.json $(OPTIONS)

lint: $(VENV)/.installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(VENV)/.installed-dev
	.ci/layout build/layout
	cd build/layout && $(abspath $(RUN)) -m mypy --config-file ../../pyproject.toml

docs: $(VENV)/.installed-dev
	.ci/layout build/layout
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet

audit: $(VENV)/.installed-test
	.ci/audit

release: $(VENV)/.installed-dev
	.ci/release $(abspath $(RUN))

install: $(VENV)/.installed

setup: $(VENV)/.installed-dev
	$(RUN) -m pre_commit install

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "stripseg needs Python 3.10 or newer; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	@echo $(INSTALLING)
	$(RUN) $(INSTALL) .
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python $(SOURCES)
	@echo $(INSTALLING)
	$(RUN) $(INSTALL) '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(VENV)/bin/python $(SOURCES)
	@echo $(INSTALLING)
	$(RUN) $(INSTALL) '.[test,docs,dev]'
	touch $@ $(VENV)/.installed-test $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info
