#!/bin/sh
# All that is to be known from a GPU machine, in one go of ten minutes at most; results/gpu.json is written as it comes.
#   sh benchmarks/gpu.sh [FILE]      # where the JSON goes; PYTHON=… chooses the interpreter
#   sh benchmarks/gpu.sh --dry       # tiny networks on the CPU: does it run?
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
if [ "${1:-}" = "--dry" ]; then
    exec "${PYTHON:-python3}" benchmarks/gpu.py --dry --only kd cwd jml dist bpkd
fi
exec "${PYTHON:-python3}" benchmarks/gpu.py --minutes 8.5 ${1:+--out "$1"}
