# Every target makes the environment if it is missing. Variables: PYTHON, VENV, OUT, TESTS, and of mutants N, MINUTES, SHARD, ONLY.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/digits
TESTS ?= -m "not slow and not gpu"
N ?=
MINUTES ?= 0
SHARD ?= 1/1
ONLY ?=
OLDEST := torch==2.11.0 torchvision==0.26.0
BIN := $(VENV)/bin

.PHONY: compare test test-slow test-oldest mutants mutants-map fuzz audit coverage examples check docs site bench clean

compare: $(VENV)/.installed  ## compare gates on handwritten digits; ends with a table and the path of a report
	$(BIN)/gatewise compare --data digits --model resnet20 --gates none,se,gct,gc --seeds 5 --epochs 20 --out $(OUT)

test: $(VENV)/.developed  ## the default test suite
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses auto --dist worksteal

test-slow: $(VENV)/.developed  ## the tests that take longer
	$(BIN)/python -m pytest -m "slow and not gpu" --numprocesses auto --dist worksteal

test-oldest: .venv-oldest/.developed  ## the default suite with the oldest torch that is supported
	.venv-oldest/bin/python -m pytest $(TESTS) --numprocesses auto --dist worksteal

.venv-oldest/.developed: pyproject.toml
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-oldest/bin/python -m pip install --quiet --editable ".[all]" --group dev $(OLDEST)
	touch $@

mutants: $(VENV)/.developed  ## small bugs that tests must catch: all; N=16 drawn by the commit; ONLY=word; SHARD=1/4
	PYTHONPATH=tests $(BIN)/python -m mutants $(if $(N),-n $(N) --minutes $(MINUTES)) --shard $(SHARD) --only "$(ONLY)"

mutants-map: $(VENV)/.developed  ## which tests execute which function: tests/mutants/tests.json, half an hour
	PYTHONPATH=tests $(BIN)/python -m mutants.mapping

fuzz: $(VENV)/.developed  ## 10,000 spoiled inputs and 200 command lines, half an hour; what goes wrong is printed
	$(BIN)/python tests/fuzz.py --inputs 10000 --commands 200 --workers 2 --out docs/results/reliability/fuzz.json

audit: $(VENV)/.developed  ## known weaknesses of the packages in the environment, as the Python Packaging Advisory Database lists them
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip_audit --local --skip-editable

coverage: $(VENV)/.developed  ## branches that the tests run, subprocesses too; TESTS= chooses which
	rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest $(TESTS) --numprocesses auto --dist worksteal
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python tests/coverage_summary.py docs/results/reliability/coverage.json

examples: $(VENV)/.developed  ## every example, seconds each, and what it must print
	$(BIN)/python -m pytest tests/test_examples.py -m "slow or not slow" -k "not whole"

check: $(VENV)/.developed  ## format, lint, types, layers, spelling, generated pages, mutants that apply
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/codespell
	PYTHONPATH=tests $(BIN)/python -m mutants --check
	$(BIN)/gatewise gates --markdown | diff docs/gates.md - || (echo "docs/gates.md is stale: run make docs"; exit 1)

docs: $(VENV)/.developed  ## the pages that are generated; tests see whether the second and third are stale
	$(BIN)/gatewise gates --markdown > docs/gates.md
	$(BIN)/python tests/networks_page.py > docs/networks.md
	$(BIN)/python tests/compatibility_page.py > docs/compatibility.md

site: $(VENV)/.documented  ## the documentation as a site, in docs/_build; a warning stops it
	$(BIN)/python -m sphinx -b html -q -W --keep-going docs docs/_build

bench: $(VENV)/.installed  ## the benchmarks, minutes each, on an otherwise idle machine
	$(BIN)/python benchmarks/gates.py
	$(BIN)/python benchmarks/fused.py
	$(BIN)/python benchmarks/training_loop.py

clean:  ## the environment, the default comparison and the site
	rm -rf $(VENV) $(OUT) docs/_build docs/api docs/gates docs/commands.md

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	touch $@

$(VENV)/.documented: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

$(VENV)/.developed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group dev
	touch $@
