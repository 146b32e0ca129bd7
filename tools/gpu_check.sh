#!/usr/bin/env bash
# Check this machine's GPU: the RNN-T loss, tests on CUDA, and the demo's trainings and decoding in float16 and bfloat16.
#
#   tools/gpu_check.sh [OUTPUT]        (or: make gpu-check)
#
# Takes about 8 minutes on an H200 with 16 cores. Writes loss.txt, tests.txt, tests.xml, data.txt, results.md and
# results.json to OUTPUT. Environment variables:
#   PYTHON   a Python with a torch for CUDA (default: python3)
#   WHEELS   folder of wheels that this check installs for itself, on a machine without network
#   UPDATES  updates of the dense model (default: 3000)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
output=${1:-gpu-check}
mkdir -p "$output"
output=$(cd "$output" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl
fi
export PYTHONPATH=$PWD:$work/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1

"$python" benchmarks/rnnt_loss_cuda.py | tee "$output/loss.txt"

# Together, since the preparation uses no GPU, and trainings of this size use little of it.
"$python" -m pytest -q -p no:cacheprovider -n 6 -k cuda --junitxml "$output/tests.xml" \
  tests/models tests/pathways tests/optim tests/decoding tests/training tests/transcription > "$output/tests.txt" 2>&1 &
tests=$!
cd egs/mls/ASR
"$python" -m icefall_pathways run --demo 1 --stop-stage 0 --data-dir "$work/data" --corpus-dir "$work/corpus" \
  > "$output/data.txt" 2>&1 || { tail "$output/data.txt"; exit 1; }
status=0
"$python" ../../../benchmarks/gpu.py --data-dir "$work/data" --output "$work/exp" --results "$output" \
  --num-updates "${UPDATES:-3000}" || status=$?
wait "$tests" || status=$?
grep -E '^(FAILED|ERROR) |[0-9]+ (passed|failed)' "$output/tests.txt" || true
exit "$status"
