# Every target installs the package into .venv on first use.
DATASET ?= flights
GRID ?= paper-grid
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
installed := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install preprocess sweep experiments figures docs benchmark benchmark-preprocess benchmark-serving torture test test-thorough lint clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1 | \2/p' Makefile | while IFS='|' read -r name what; do printf '%-26s %s\n' "$$name" "$$what"; done

install: $(installed)  ## the package and all its extras into .venv

$(installed): setup.cfg pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	$(VENV)/bin/python -m pip install --quiet --constraint requirements.lock --no-deps torchrec
	touch $@

preprocess: $(installed)  ## raw file -> data/: DATASET=name or my-data.toml, RAW=clicks.csv
	scripts/preprocess.sh $(DATASET) $(RAW)

sweep: $(installed)  ## the paper's grid on NYC flights; DATASET=complete-journey, GRID=controls, OPTIONS="--jobs 1" for others
	scripts/sweep.sh $(DATASET) $(GRID) $(OPTIONS)

experiments: $(installed)  ## those of DATASET that answer most, or EXPERIMENTS="fair-fight-sgd rivals"
	scripts/experiments.sh $(DATASET) $(EXPERIMENTS)

figures: $(installed)  ## all figures and tables again, from results/ alone
	dlrm-mlet report results --claims docs/reproduction.md

docs: $(installed)  ## docs/config.md, datasets.md and licences.md, from the code and the packages
	python scripts/document_keys.py
	python scripts/document_licences.py

benchmark: $(installed)  ## Table 2 of the paper on this machine
	dlrm-mlet benchmark
	dlrm-mlet report results --claims docs/reproduction.md

benchmark-preprocess: $(installed)  ## preprocessing beside what polars needs merely to parse the same file
	python scripts/benchmark_preprocess.py

torture: $(installed)  ## kills, pairs, faults and damaged files: what was lost; 41 minutes on two busy cores
	python scripts/torture.py

benchmark-serving: sweep  ## bytes, scores and latency of flights models in ONNX Runtime
	python scripts/benchmark_serving.py

# a worker a core, so one thread each
pytest := OMP_NUM_THREADS=1 python -m pytest --numprocesses auto --maxprocesses 4

test: $(installed)  ## the tests: each behaviour and each error
	$(pytest)

test-thorough: $(installed)  ## those that take long: kills, memory, other libraries, what stands in for a GPU
	$(pytest) -m thorough

lint: $(installed)  ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

clean:  ## remove what was installed; data/ and results/ stay
	rm -rf $(VENV) build ./*.egg-info
