# make demo PYTHON=python3.11 VENV=.venv: any of Python 3.10 to 3.12, any folder.
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
# BasicSR's setup.py names torch as a build requirement, though it builds without. In an isolated
# build pip would install a second torch only to throw it away; without --use-pep517 pip before 25
# would let setuptools fetch one.
INSTALL := $(BIN)/python -m pip install --no-build-isolation --use-pep517

.PHONY: demo test lint docs clean

demo: $(VENV)/.installed
	$(BIN)/basicsr demo

# One thread a process: the tests run in several processes.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Into site/, which opens from disk; a warning is an error.
docs: $(VENV)/.installed
	$(INSTALL) --editable ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

# BasicSR asks for opencv-python, which needs the system's libGL; the headless build has the same
# functions and needs nothing.
$(VENV)/.installed: setup.py $(wildcard esc_arch/kernels/cpu/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install setuptools wheel
	$(INSTALL) --editable .
	$(BIN)/python -c "import cv2" || \
		$(BIN)/python -m pip install --force-reinstall --no-deps opencv-python-headless
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --editable ".[test]"
	touch $@
