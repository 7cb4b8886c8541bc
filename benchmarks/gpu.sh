#!/usr/bin/env bash
# The one command for a machine with a GPU: is the Triton engine right there, and then how fast.
#
#   benchmarks/gpu.sh [python]
#
# Needs a Python with torch for CUDA and what `sagelr bench` needs; sets nothing up. Stops at the
# first check that fails, before anything is timed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"

"$python" benchmarks/gpu_check.py
"$python" -m sagelr bench --device cuda --out results/bench
"$python" -m sagelr bench --device cuda --out results/bench --shapes flat-1b
