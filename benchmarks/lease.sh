#!/usr/bin/env bash
# Everything that only a GPU can answer, in one unattended run of under nine minutes:
#
#     OUT=results benchmarks/lease.sh [--budget-s 520] [--only STEP ...] [--pack DIR]
#
# From a plain copy of the tree: no install, no git, no network. What `python -m benchmarks.lease.pack`
# prepared (compiled kernels, wheels) is used where it is there. Results are kept step by step in $OUT.
set -u
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/export:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m benchmarks.lease "$@"
