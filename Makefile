# make quickstart   install and run the main job: simulate, train, report, predict   (runs/quickstart/)
# make test         install and run all checks and tests
# make lint | docs | bench
# Everything goes into .venv, made when missing; PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
OUT     = runs/quickstart

.PHONY: quickstart test lint docs bench clean

quickstart: $(VENV)/.installed
	$(BIN)/deeplense simulate quickstart --out $(OUT)/dataset
	$(BIN)/deeplense train quickstart --data $(OUT)/dataset --out $(OUT)/run $$(test -f $(OUT)/run/last.ckpt && echo --resume)
	$(BIN)/deeplense evaluate $(OUT)/run/bundle.safetensors --data $(OUT)/dataset --out $(OUT)/report
	$(BIN)/deeplense predict $(OUT)/run/bundle.safetensors $(OUT)/dataset --split test --out $(OUT)/predictions.csv
	@echo && echo "ten of the predictions in $(OUT)/predictions.csv:" && head -n 11 $(OUT)/predictions.csv | cut -d, -f1,3-7
	@echo && $(BIN)/python -c "import json; m = json.load(open('$(OUT)/report/metrics.json')); print('macro AUC %.4f' % m['auc']['macro'], 'on', m['n'], 'unseen test images; the report: $(OUT)/report/index.html')"

# a process a core, and one thread each
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n logical

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

# hours on two cores; `python benchmarks/NAME.py` runs one, and docs/benchmarks.md says what each measures
bench: $(VENV)/.installed-dev
	set -e; for script in $(sort $(filter-out benchmarks/peers.py,$(wildcard benchmarks/*.py))); do \
	  echo "== $$script"; $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) build site

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.installed
