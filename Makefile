# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# Known to install quickly where no GPU is visible; anything that pyproject.toml admits works as well.
CPU_TORCH := torch==2.13.0

.PHONY: quickstart test test-gpu fuzz kill hostile families compatibility bridges fusions lint types check docs bench assets clean
.DEFAULT_GOAL := help
help:
	@echo "make quickstart  install, then train, evaluate, merge and show pictures, offline, in minutes"
	@echo "make test        install, then run the whole test suite"
	@echo "make test-gpu    what depends on the device, on the GPU, in minutes"
	@echo "make families    try every decoder family that Transformers builds, in half an hour, into docs/families.md"
	@echo "make bridges      LLM families x towers x fusions, trained, merged and proved, into docs/bridges.md"
	@echo "make fusions      every fusion on the same task with the same time, into docs/fusions.md"
	@echo "make compatibility  train, merge and verify a tiny model of every class, into docs/compatibility.md"
	@echo "make hostile     print a table of the hostile inputs: how many, tracebacks, hangs, memory"
	@echo "make fuzz        draw hostile inputs (FUZZ_MINUTES=20), and print how they ended"
	@echo "make kill        kill training, merging, exporting, caching and indexing 50 times for each of KILL_SEEDS=3 seeds,"
	@echo "                 and one of two processes that train together 32 times, and compare"
	@echo "make lint types  ruff, import-linter and pydoclint; mypy"
	@echo "make docs        build the documentation into build/site, and fail at broken links"
	@echo "make bench       measure speed and memory beside TRL into docs/benchmarks.md (BENCH=--small: quickly)"
	@echo "make assets      make the quickstart's tiny models again (about 40 minutes)"

quickstart: $(VENV)/.installed
	$(BIN)/lockadapt quickstart

test: $(VENV)/.installed-dev
	@$(BIN)/lockadapt doctor | grep '^4-bit layers'
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

test-gpu: $(VENV)/.installed-dev
	LOCKADAPT_GPU=1 $(BIN)/python -m pytest -q tests/gpu

hostile: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile

FUZZ_MINUTES ?= 1
fuzz: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.fuzz --minutes $(FUZZ_MINUTES)

KILL_SEEDS ?= 3
kill: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.kill --seeds $(KILL_SEEDS)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.kill.ranks

families: $(VENV)/.installed-dev
	PYTHONPATH=. $(BIN)/python benchmarks/decoder_families.py --markdown docs/families.md

compatibility: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/compatibility.py --markdown docs/compatibility.md

bridges: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/compatibility.py --bridges --markdown docs/bridges.md

fusions: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/fusions.py --markdown docs/fusions.md

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --cache-dir .import_linter_cache
	$(BIN)/pydoclint --quiet lockadapt

types: $(VENV)/.installed-dev
	$(BIN)/mypy

check: lint types test

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict --quiet

BENCH ?=
bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/throughput.py $(BENCH) --details benchmarks/results/throughput-fp32.json
	$(BIN)/python benchmarks/throughput.py $(BENCH) --dtype bf16 --case vqa-5 --case caption-1 --details benchmarks/results/throughput-bf16.json
	$(BIN)/python benchmarks/head.py --details benchmarks/results/head.json
	$(BIN)/python benchmarks/gradcache.py --details benchmarks/results/gradcache.json
	$(BIN)/python benchmarks/merge.py --details benchmarks/results/merge.json
	$(BIN)/python benchmarks/merge.py --layers 108 --shards 4 --rounds 2 --only lockadapt --details benchmarks/results/merge-large.json
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/startup.py --rows 600000 --images 100000
	$(BIN)/python benchmarks/encoding.py
	$(BIN)/python benchmarks/quality.py --only easy-vqa --seconds 600 --curve benchmarks/results/quality.png
	$(BIN)/python benchmarks/report.py

assets: $(VENV)/.installed
	$(BIN)/python scripts/make_quickstart_assets.py

clean:
	rm -rf $(VENV) quickstart build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Without a GPU the CPU build of torch goes first, so that nothing pulls gigabytes of CUDA.
$(VENV)/.torch: | $(VENV)/bin/python
	@$(BIN)/python -c "import torch" 2>/dev/null || command -v nvidia-smi >/dev/null 2>&1 || $(PIP) install $(CPU_TORCH)
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.torch
	$(PIP) install -e .
	@touch $@

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/.installed
	$(PIP) install -e ".[docs]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.torch
	$(PIP) install -e ".[dev]"
	@touch $@ $(VENV)/.installed
