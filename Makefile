# Every target creates its environment if it is missing. Variables: PYTHON, VENV, OUT, TESTS; for mutants N, MINUTES, SHARD, ONLY, WORKERS, ADD; for package EXTRAS.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/digits
TESTS ?= -m "not slow and not gpu"
N ?=
MINUTES ?= 0
SHARD ?= 1/1
ONLY ?=
WORKERS ?=
PAGES := tests/integration/test_documents.py::test_python_of_page_runs
TRAINERS := tests/integration/trainers tests/unit/integrations tests/integration/test_examples.py \
	"$(PAGES)[docs/lightning.md]" "$(PAGES)[docs/hugging-face.md]"
OLDEST := torch==2.11.0 torchvision==0.26.0
BIN := $(VENV)/bin

.PHONY: compare test test-extended test-slow test-oldest test-trainers mutants mutants-map fuzz audit coverage examples \
	notebooks licences check docs site package bench clean help

compare: $(VENV)/.installed  ## compare gates on handwritten digits; prints a table and the path of the report
	$(BIN)/gatewise compare --data digits --model resnet20 --gates none,se,gct,gc --seeds 5 --epochs 20 --out $(OUT)

test: $(VENV)/.developed  ## run the default test suite
	$(BIN)/python -m pytest -m "not extended and not slow and not gpu" --numprocesses auto --dist worksteal

test-extended: $(VENV)/.developed  ## run the tests of seconds each that the default suite leaves out; .ci/run runs both
	$(BIN)/python -m pytest -m "extended and not slow and not gpu" --numprocesses auto --dist worksteal

test-slow: $(VENV)/.developed  ## run the slow tests
	$(BIN)/python -m pytest -m "slow and not gpu" --numprocesses auto --dist worksteal

test-oldest: .venv-oldest/.developed  ## run the default and extended tests with the oldest supported torch
	.venv-oldest/bin/python -m pytest $(TESTS) --numprocesses auto --dist worksteal

.venv-oldest/.developed: pyproject.toml
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-oldest/bin/python -m pip install --quiet --editable ".[all]" --group dev $(OLDEST)
	touch $@

test-trainers: .venv-trainers/.developed  ## run the tests with Lightning, transformers and ultralytics
	.venv-trainers/bin/python -m pytest $(TRAINERS)

.venv-trainers/.developed: pyproject.toml
	test -x .venv-trainers/bin/python || $(PYTHON) -m venv .venv-trainers
	.venv-trainers/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-trainers/bin/python -m pip install --quiet --editable ".[all]" --group dev --group trainers
	touch $@

mutants: $(VENV)/.developed  ## run the tests on small planted bugs: all; N=16 draws a sample; ONLY=word; SHARD=1/4
	PYTHONPATH=tests $(BIN)/python -m mutants $(if $(N),-n $(N) --minutes $(MINUTES)) --shard $(SHARD) --only "$(ONLY)" $(if $(WORKERS),--workers $(WORKERS))

mutants-map: $(VENV)/.developed  ## record which tests execute which function in tests/mutants/tests.json, half an hour; ADD= adds the tests named
	PYTHONPATH=tests $(BIN)/python -m mutants.mapping $(ADD)

fuzz: $(VENV)/.developed  ## test 10,000 corrupt inputs and 200 command lines, half an hour; prints failures
	PYTHONPATH=tests $(BIN)/python tools/fuzz.py --inputs 10000 --commands 200 --workers 2 --out docs/results/reliability/fuzz.json

audit: $(VENV)/.developed  ## list known vulnerabilities of the installed packages, from the Python Packaging Advisory Database
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip_audit --local --skip-editable

licences: .venv-package/.installed  ## write docs/licences.md: every package that gatewise and its extras install; fails if one states no licence
	.venv-package/bin/python tools/licences_page.py

coverage: $(VENV)/.developed  ## measure branch coverage, subprocesses included; TESTS= selects tests
	rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run -m pytest $(TESTS) --numprocesses auto --dist worksteal
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python tools/coverage_summary.py docs/results/reliability/coverage.json

examples: $(VENV)/.developed  ## run every example for seconds, the notebooks, and the Python of long pages, and check their output
	$(BIN)/python -m pytest tests/integration/test_examples.py -m "slow or not slow" -k "not full_example"
	$(BIN)/python -m pytest tests/integration/test_notebooks.py tests/integration/test_documents.py -m slow

notebooks: $(VENV)/.developed  ## run the notebooks and store their outputs, a minute or two
	$(BIN)/python tools/run_notebooks.py

check: $(VENV)/.developed  ## check format, lint, types, layers, spelling, generated pages, and that the mutants apply
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/codespell
	PYTHONPATH=tests $(BIN)/python -m mutants --check
	$(BIN)/gatewise gates --markdown | diff docs/gates.md - || (echo "docs/gates.md is stale: run make docs"; exit 1)

docs: $(VENV)/.developed  ## write the generated pages, the flags of recipes and the pictures; tests check whether they are stale
	$(BIN)/gatewise gates --markdown > docs/gates.md
	$(BIN)/python -c "from gatewise.cli import recipe_flags; recipe_flags.store()"
	PYTHONPATH=.:tests $(BIN)/python tools/networks_page.py > docs/networks.md
	PYTHONPATH=.:tests $(BIN)/python tools/compatibility_page.py > docs/compatibility.md
	$(BIN)/python tools/draw_layers.py
	$(BIN)/python tools/draw_results.py

site: $(VENV)/.documented  ## build the documentation site in docs/_build; fails on a warning
	$(BIN)/python -m sphinx -b html -q -W --keep-going docs docs/_build

package: .venv-package/.installed  ## build and check wheel and source distribution, and try each extra in an empty environment; EXTRAS= chooses
	.venv-package/bin/python tools/package.py $(if $(EXTRAS),--extras "$(EXTRAS)")

.venv-package/.installed: pyproject.toml
	test -x .venv-package/bin/python || $(PYTHON) -m venv .venv-package
	.venv-package/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-package/bin/python -m pip install --quiet --group package
	touch $@

bench: $(VENV)/.installed  ## run the benchmarks, minutes each; needs an idle machine
	$(BIN)/python benchmarks/gates.py
	$(BIN)/python benchmarks/fused.py
	$(BIN)/python benchmarks/training_loop.py

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

clean:  ## delete the environment, the default comparison and the site
	rm -rf $(VENV) $(OUT) docs/_build docs/jupyter_execute docs/api docs/gates docs/commands.md

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
