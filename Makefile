# Two commands set up everything they need: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SLOW   := browser or processes

.PHONY: demo test test-slow lint docs evidence-report clean

demo: $(STAMP)
	$(BIN)/sagelr compare digits-vit

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 -m "not ($(SLOW))"

# What .ci/run runs after `make test`; needs Debian's chromium for the browser tests.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "$(SLOW)"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# constraints.txt keeps pip to the versions the project is tested with, torch's CPU build among
# them where the index offers one.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --site-dir build/docs

# One row of docs/evidence, for example `make evidence-rte-adamw`; TIER=full on a GPU. It goes on
# where it stopped. Beside a row: CONTROLS=1 runs its controls, CONTROLS=A,B these alone, RELATIVE=1
# the relative rule where the row leaves it out, REUSE=1 has these take over the row's own runs,
# REUSE=NAME those of another published study, VARIANT=NAME is the row under other conditions, and
# MATCHED=1 measures its models at matched loss.
evidence-%: $(STAMP)
	$(BIN)/python evidence/$(if $(MATCHED),matched,run).py $* --tier $(or $(TIER),small) $(if $(CONTROLS),--controls $(filter-out 1,$(CONTROLS))) $(if $(RELATIVE),--relative) $(if $(VARIANT),--variant $(VARIANT)) $(if $(REUSE),--reuse $(filter-out 1,$(REUSE)))

evidence-report: $(STAMP)
	$(BIN)/python evidence/report.py

clean:
	rm -rf $(VENV)
