"""`python -m benchmarks.sparse_model DIR [GENERATION]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.sparse_model import GENERATIONS, write_sparse_model

parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse_model")
parser.add_argument("directory", type=Path)
parser.add_argument("generation", nargs="?", default="2.3", choices=tuple(GENERATIONS))
arguments = parser.parse_args()
for role, place in write_sparse_model(arguments.directory, arguments.generation).items():
    print(f"--{role.replace('_', '-')} {place}")
