#!/usr/bin/env bash
# Everything that needs a GPU, in one call of about ten minutes:
#
#   [OUT=FOLDER] [PYTHON=python3] benchmarks/gpu.sh [--quick] [--minutes N]
#
# First it tests the op against the specification, with compiled kernels and real CUDA graphs, then it measures what the
# op costs. A red test does not keep the benchmark from running. Results go to $OUT (benchmarks/results by default):
#
#   gpu_tests.txt     the output of pytest
#   gpu_decode.json   the raw results, complete after every cell
#   gpu_decode.txt    the table, and the traceback of a cell that failed
#
# Needs a CUDA device and Python 3.11 or later with torch 2.11, triton 3.6, transformers 5.17 (or later ones), numpy,
# safetensors and pytest. With peft and numba more tests run, and PEFT is timed as well. Needs no network, no git, no Ray,
# and this project need not be installed. Exit code: 0 if all is green, 1 if anything is red, 2 without a CUDA device.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
mkdir -p "${OUT:=$root/benchmarks/results}"
out="$(cd "$OUT" && pwd)"
python="${PYTHON:-python3}"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
cd "$root"
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "no CUDA device here that torch sees; $python -m benchmarks.gpu_decode --smoke runs a tiny model without one" >&2
  exit 2
fi

status=0
# The project's own pytest settings want plugins that a bare machine does not have. Interrupted, pytest still says where
# it was; terminated, it would not.
timeout --signal=INT --kill-after=10 200 \
  "$python" -m pytest -v -c /dev/null --rootdir . --noconftest -p no:cacheprovider tests/dlp_core/fusion/test_triton.py \
  tests/dlp_core/fusion/test_triton_graphs.py 2>&1 |
  tee "$out/gpu_tests.txt" || status=1
"$python" -m benchmarks.gpu_decode --out "$out/gpu_decode.json" "$@" 2>&1 | tee "$out/gpu_decode.txt" || status=1
[ "$status" = 0 ] || echo "something is red: see $out/gpu_tests.txt and $out/gpu_decode.txt" >&2
exit "$status"
