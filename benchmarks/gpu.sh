#!/usr/bin/env bash
# Everything that needs a GPU, on a machine with only torch, triton, transformers, peft and pytest:
#
#   benchmarks/gpu.sh [--quick]      results in $OUT, benchmarks/results by default
#
# First tests the op against the specification with compiled kernels and real CUDA graphs, then measures its cost.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${OUT:-benchmarks/results}"
export HF_HUB_OFFLINE=1
if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "no CUDA device here; python -m benchmarks.gpu_decode --smoke runs a tiny model without one" >&2
  exit 2
fi
# The project's pytest settings need plugins that a bare machine lacks.
python -m pytest -q -c /dev/null --rootdir . --noconftest -p no:cacheprovider tests/dlp_core/fusion/test_triton.py
python -m benchmarks.gpu_decode "$@" --out "$out/gpu_decode.json"
