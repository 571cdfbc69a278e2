# Every target installs the package into .venv on first use.
DATASET ?= flights
GRID ?= paper-grid
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
installed := $(VENV)/.installed

.PHONY: install preprocess sweep experiments figures benchmark benchmark-preprocess benchmark-serving test lint clean

install: $(installed)

$(installed): setup.cfg pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

preprocess: $(installed)  ## make preprocess DATASET=my-data.toml RAW=clicks.csv
	scripts/preprocess.sh $(DATASET) $(RAW)

sweep: $(installed)  ## make sweep [DATASET=flights] [GRID=paper-grid]
	scripts/sweep.sh $(DATASET) $(GRID)

experiments: $(installed)  ## all that docs/reproduction.md is drawn from, in under two hours on two cores
	scripts/experiments.sh $(DATASET)

figures: $(installed)  ## all figures and tables again, from results/ alone
	dlrm-mlet report results --claims docs/reproduction.md

benchmark: $(installed)  ## Table 2 of the paper on this machine
	dlrm-mlet benchmark
	dlrm-mlet report results --claims docs/reproduction.md

benchmark-preprocess: $(installed)  ## against what polars needs merely to parse the same file
	python scripts/benchmark_preprocess.py

benchmark-serving: sweep  ## bytes, scores and latency of flights models in ONNX Runtime
	python scripts/benchmark_serving.py

test: $(installed)
	python -m pytest

lint: $(installed)
	ruff check .
	ruff format --check .
	mypy

clean:  ## what was installed; data/ and results/ stay
	rm -rf $(VENV) build ./*.egg-info
