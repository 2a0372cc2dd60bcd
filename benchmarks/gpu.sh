#!/usr/bin/env bash
# Everything that needs a GPU, in one call of at most ten minutes:
#
#   [OUT=FOLDER] [PYTHON=python3] benchmarks/gpu.sh [--quick] [--minutes N]
#
# First the op against the specification, with compiled kernels and real CUDA graphs; then what it costs. A red test does
# not keep the benchmark from running. Results lie in $OUT (benchmarks/results by default), whole after every cell:
#
#   gpu_tests.txt     what pytest said
#   gpu_decode.json   the raw result            gpu_decode.txt   its table, and what failed
#
# Needs a CUDA device and a Python of 3.11 or later with torch 2.11, triton 3.6, transformers 5.17, numpy, safetensors and
# pytest, each that or later. With peft and numba two more tests run, and PEFT is timed as well. Needs no network, no git,
# no Ray and no installation of this project. Exit code: 0 if all is well, 1 if anything is red, 2 if nothing could run.
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
# The project's own pytest settings want plugins that a bare machine does not have. An interrupt, unlike an end, leaves
# pytest the time to say which test hangs.
timeout --signal=INT --kill-after=10 200 \
  "$python" -m pytest -v -c /dev/null --rootdir . --noconftest -p no:cacheprovider tests/dlp_core/fusion/test_triton.py 2>&1 |
  tee "$out/gpu_tests.txt" || status=1
"$python" -m benchmarks.gpu_decode --out "$out/gpu_decode.json" "$@" 2>&1 | tee "$out/gpu_decode.txt" || status=1
[ "$status" = 0 ] || echo "not all is well: see $out/gpu_tests.txt and $out/gpu_decode.txt" >&2
exit "$status"
