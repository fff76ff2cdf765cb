# make demo    train and test on shapes that it draws itself, with pictures    DEMO_ARGS=--quick for a short one,
#              DEMO_ARGS='--minutes 5' for a training of about so long
# make test    all tests                                                       TESTS=tests/test_ops or TEST_ARGS='-k matcher' for some
# make test-compiled  all tests with mmcv's compiled operators, in an environment of their own, .venv-compiled
# make test-onedl     all tests on the maintained forks (requirements/lock-onedl.txt), likewise, .venv-onedl
# make test-oldest    all tests on the oldest versions that are supported (requirements/lock-oldest.txt), with Python 3.10,
#              likewise, .venv-oldest; pip's torch 2.1.0 on Linux brings CUDA: TORCH_OLDEST= names another build
# make bench   how fast it is and how cost grows, into work_dirs/bench          BENCH_ARGS=--quick to see that it works
# make test-page  the tests of the page of `mmdet-diffusion web` in a browser: needs a Chromium or Chrome on the PATH
# make docs    the documentation as a site with search and pages of all names, into work_dirs/docs
# make lint    ruff
# make setup   only the environment; the others do it themselves, and it takes a second once all is in place
# make clean   remove caches and what a build leaves; environments and training results stay
#
# VENV=DIR     the environment, .venv unless given. One that is there is used as it is: its torch is kept, an unsupported
#              mmcv or mmdet in it is reported and not replaced, the rest gets the versions in requirements/lock.txt.
# PYTHON=EXE   the Python (3.11 or 3.12; 3.10 with LOCK=oldest) that makes the environment. When it belongs to a virtual or conda environment of
#              yours and VENV is not given, then that environment is the one that is used.
# TORCH=...    the torch to install where there is none, in pip's words: TORCH='torch==2.12.0', or with options of pip.
# LOCK=oldest  the oldest supported versions instead of those in requirements/lock.txt: for a torch before 2.3, or Python 3.10.
# OPERATORS=compiled   mmcv with its compiled operators instead of ours in torch: takes a C++ compiler and 6 to 13 minutes.
#              An mmcv in the environment whose operators work is kept either way. MAX_JOBS=N: compilers at once.

SHELL := /bin/bash
# Containers like to set it. The set-up compiles nothing either, so that each of the many processes of the tests and of the
# demo would compile all of torch and mmdet again, three times the time of their imports.
unexport PYTHONDONTWRITEBYTECODE
SETUP := tools/misc/setup_environment.py
TORCH ?= torch==2.13.0

ifneq ($(PYTHON),)
  ifeq ($(origin VENV),undefined)
    VENV := $(shell '$(PYTHON)' $(SETUP) --print-environment)
  endif
endif
VENV ?= .venv
VENV := $(or $(VENV),.venv)
VENV_COMPILED ?= .venv-compiled
VENV_ONEDL ?= .venv-onedl
VENV_OLDEST ?= .venv-oldest
TORCH_OLDEST ?= torch==2.1.0
PYTHON_OLDEST ?= python3.10
OPERATORS ?= stand-in
# What is laid over requirements/lock.txt: by OPERATORS, or onedl, or oldest.
LOCK := $(OPERATORS)
BIN = $(VENV)/bin

TESTS ?= tests
# The tests' tensors are small: a thread more only waits, a process more takes other files. TEST_ARGS='-n 0' for none.
TEST_PROCESSES = $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$(( n < 4 ? n : 4 )))
# Files in the order of tests/conftest.py.
TEST_SHARES = -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

# A new name for each run: results of earlier ones stay.
BENCH_CONFIG ?= configs/diffusiondet/diffusiondet_r50_fpn_8xb2-450k_coco.py
BENCH_OUT ?= work_dirs/bench/$(shell date +%Y%m%d-%H%M%S)

.PHONY: setup demo test test-page test-compiled test-onedl test-oldest bench docs lint clean

# Any Python can run the set-up's script, which says what is wrong with one that is too old; a fitting one is looked for first.
setup:
	@for python in $(if $(PYTHON),'$(PYTHON)','$(BIN)/python' python3.11 python3.12 python3); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11), (3, 12)))' 2>/dev/null; then break; fi; \
	done; \
	if ! command -v "$$python" >/dev/null; then \
	  echo "setup: there is no $$python. Cure: install Python 3.11, or name one: make $@ PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	"$$python" $(SETUP) --venv '$(VENV)' --torch '$(TORCH)' --lock '$(LOCK)'

demo: setup
	$(BIN)/python tools/demo.py $(DEMO_ARGS)

test: setup
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(TESTS) -q $(TEST_SHARES) $(TEST_ARGS)

# Where `make test` skips them for want of a browser, these fail.
test-page: setup
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements/browser.txt
	BROWSER_TESTS=required $(BIN)/python -m pytest tests/test_web/test_page_in_browser.py -q -n 0

test-compiled:
	$(MAKE) test VENV='$(VENV_COMPILED)' LOCK=compiled

test-onedl:
	$(MAKE) test VENV='$(VENV_ONEDL)' LOCK=onedl

test-oldest:
	$(MAKE) test VENV='$(VENV_OLDEST)' LOCK=oldest TORCH='$(TORCH_OLDEST)' PYTHON='$(PYTHON_OLDEST)'

bench: BENCH_OUT := $(BENCH_OUT)
bench: setup
	mkdir -p '$(BENCH_OUT)'
	$(BIN)/python tools/analysis_tools/benchmark_head.py $(BENCH_CONFIG) --out '$(BENCH_OUT)/head.json' $(BENCH_ARGS)
	$(BIN)/python tools/analysis_tools/benchmark_growth.py $(BENCH_CONFIG) --out '$(BENCH_OUT)/growth.json' \
	  --plot '$(BENCH_OUT)/growth.png' $(BENCH_ARGS)

docs: setup
	$(BIN)/python -c 'import furo, myst_parser, sphinx' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --no-deps --requirement requirements/docs.txt
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs work_dirs/docs
	@echo 'docs: open work_dirs/docs/index.html'

lint: setup
	$(BIN)/ruff check .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find configs diffusiondet_runtime mmcv_stand_in mmdet_diffusion mmdet_diffusion_cli tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
