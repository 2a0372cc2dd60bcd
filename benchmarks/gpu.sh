#!/usr/bin/env bash
# Everything that needs a GPU, in one call of less than ten minutes:
#
#   [OUT=FOLDER] [PYTHON=python3] benchmarks/gpu.sh [--quick] [--minutes N]
#
# First it tests the ops against their specifications, with compiled kernels, and the whole engine with real CUDA graphs.
# Then it measures what adapters cost in a pass, and the engine. A red step does not keep the others from running.
# Results go to $OUT (benchmarks/results by default):
#
#   gpu_tests.txt     the output of pytest
#   gpu_decode.json   the raw results of passes, complete after every cell
#   gpu_decode.txt    the table, and the traceback of a cell that failed
#   gpu_engine.json   the raw results of the engine, complete after every cell
#   gpu_engine.txt    the table, as above
#   gpu_memcheck.txt  what compute-sanitizer says of the kernels, where there is one
#
# The words go to gpu_decode. Needs a CUDA device and Python 3.11 or later with torch 2.11, triton 3.6, numpy, safetensors
# and pytest; transformers 5.17, and for the engine 5.23 (its wheel can be carried: no part needs a network). With peft
# and numba more tests run, and PEFT is timed as well. Needs no git, no Ray, and this project need not be installed.
# Exit code: 0 if all is green, 1 if anything is red, 2 without a CUDA device.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
mkdir -p "${OUT:=$root/benchmarks/results}"
out="$(cd "$OUT" && pwd)"
python="${PYTHON:-python3}"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
cd "$root"
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "no CUDA device here that torch sees; $python -m benchmarks.gpu_decode --smoke runs a tiny model without one" >&2
  exit 2
fi

status=0
# The project's own pytest settings want plugins that a bare machine does not have. Interrupted, pytest still says where
# it was; terminated, it would not.
pytest() {
  timeout --signal=INT --kill-after=10 "$1" "$python" -m pytest -v -c /dev/null --rootdir . --noconftest -p no:cacheprovider "${@:2}"
}
pytest 150 tests/dlp_core/fusion/test_triton.py tests/dlp_core/fusion/test_triton_graphs.py \
  tests/dlp_core/attention/test_op.py 2>&1 | tee "$out/gpu_tests.txt" || status=1
"$python" -m benchmarks.gpu_decode --minutes 2.5 --out "$out/gpu_decode.json" "$@" 2>&1 |
  tee "$out/gpu_decode.txt" || status=1
timeout 200 "$python" -m benchmarks.gpu_engine --minutes 2 --out "$out/gpu_engine.json" 2>&1 |
  tee "$out/gpu_engine.txt" || status=1
if command -v compute-sanitizer > /dev/null; then
  timeout 60 compute-sanitizer --error-exitcode 1 "$python" -m benchmarks.gpu_engine --small --layers 1 --minutes 0.1 \
    --out "$out/gpu_memcheck.json" 2>&1 | tee "$out/gpu_memcheck.txt" || status=1
fi
[ "$status" = 0 ] || echo "something is red: see the texts in $out" >&2
exit "$status"
