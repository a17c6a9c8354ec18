# On a fresh machine, `make demo` and `make test` do everything: they set .venv up first.
# The pinned torch is the CUDA build where the package index offers that, else the CPU build.
PYTHON ?= python3
BIN := .venv/bin

# Where the tables of the tiny models are made, and by how many processes; results/tiny has ours.
TINY ?= results/tiny-here
# Where the density study is made; results/density has ours.
DENSITY ?= results/density-here
JOBS ?= 2
# Of each reader and command in `make fuzz`.
EXAMPLES ?= 500
PAPER := table3 table4 table5 table10 table11

.PHONY: demo test test-slow test-faults test-oldest fuzz lint types check bench gpu pretrain-tiny clean
.PHONY: tables report status paper density-study table6 $(PAPER) tables-tiny

demo: .venv/ready  ## the embedded default: offline, on a CPU, in about a minute
	$(BIN)/sparta-bench

test: .venv/ready  ## the tests: minutes, offline
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not faults"

test-slow: .venv/ready  ## the rest: every shipped YAML runs, kills and resumes
	$(BIN)/python -m pytest -n 2 -m slow

test-faults: .venv/ready  ## kills, full disks and the like; SPARTA_BENCH_FAULTS=long for all of them
	$(BIN)/python -m pytest -m faults -n 2

test-oldest: .venv-oldest/ready  ## `make test` with the oldest versions of the packages; 6 GB
	.venv-oldest/bin/python -m pytest -m "not slow and not faults"

fuzz: .venv/ready  ## the fuzz at length, other examples each time: an hour
	SPARTA_BENCH_FUZZ=$(EXAMPLES) $(BIN)/python -m pytest tests/test_fuzz.py tests/test_fuzz_commands.py tests/test_fuzz_runs.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

check: lint types test test-slow test-faults  ## everything that continuous integration asks

bench: .venv/ready  ## step time, FLOPs and memory of all methods on this machine
	$(BIN)/sparta-bench bench

$(PAPER): .venv/ready  ## the runs of one table of the paper; ARGS="seed=0 task=rte" for a part of them
	$(BIN)/sparta-bench -m +sweep=$@ $(ARGS)

table6: .venv/ready  ## Table 6: two single models and the merged one, gemma-2b
	$(BIN)/sparta-bench -m +sweep=merging_table6 $(ARGS)
	$(BIN)/sparta-bench merge pairs results
	$(BIN)/sparta-bench tables

ifneq ($(filter --plan,$(ARGS)),)
paper: .venv/ready
	$(BIN)/sparta-bench plan -m $(PAPER:%=+sweep=%) $(filter-out --plan,$(ARGS))
else
paper: .venv/ready  ## all runs of the paper, then its tables, or with ARGS=--plan what they will take; the same command again goes on
	@ended=0; $(MAKE) --keep-going $(PAPER) || ended=$$?; $(MAKE) tables report status; exit $$ended
endif

tables-tiny: .venv/ready  ## all five tables with the tiny models: offline, on a CPU, in minutes
	$(BIN)/sparta-bench -m '+sweep=glob(tiny_*)' results_dir=$(TINY) \
		hydra/launcher=joblib hydra.launcher.n_jobs=$(JOBS) $(ARGS)
	$(BIN)/sparta-bench tables $(TINY)
	$(BIN)/sparta-bench report $(TINY)

density-study: .venv/ready  ## the best density and rate on a tiny model: offline, on a CPU, in an hour or two
	for examples in 250 1000 2000; do \
		$(BIN)/sparta-bench -m +sweep=density_tiny task.max_train_examples=$$examples \
			train.eval_every=$$((($$examples + 15) / 16)) results_dir=$(DENSITY) $(ARGS) || exit $$?; \
	done
	$(BIN)/python scripts/density_study.py $(DENSITY) --out $(DENSITY)

tables: .venv/ready  ## the paper's tables from the records in results
	$(BIN)/sparta-bench tables --settings

report: .venv/ready  ## tables and pictures as one HTML file
	$(BIN)/sparta-bench report

status: .venv/ready  ## how far each table's runs are
	$(BIN)/sparta-bench status

gpu: .venv/ready  ## ten minutes on a CUDA GPU: results/cuda/NAME; ARGS="--model DIR --data DIR" for a real run
	$(BIN)/python scripts/gpu_session.py $(NAME) $(ARGS)

pretrain-tiny: .venv/ready  ## make the embedded models anew
	$(BIN)/python scripts/pretrain_tiny.py

.venv/ready: PINS := constraints.txt
.venv/ready: constraints.txt
.venv-oldest/ready: PINS := constraints-oldest.txt
.venv-oldest/ready: constraints-oldest.txt
.venv/ready .venv-oldest/ready: pyproject.toml
	@echo "Setting $(@D) up, once; minutes, by the network. 1 of 3: torch, the largest part"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet $$(grep '^torch==' $(PINS))
	@echo "2 of 3: what builds the package"
	@$(@D)/bin/python -m pip install --quiet -c $(PINS) hatchling editables
	@echo "3 of 3: the other packages, about 150"
	@$(@D)/bin/python -m pip install --quiet --no-build-isolation -c $(PINS) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-oldest .mypy_cache .ruff_cache .pytest_cache dist build
