"""`python -m ltx2rt` is the `ltx2rt` command."""

from __future__ import annotations

import sys

from ltx2rt.cli.__main__ import main_module

if __name__ == "__main__":
    sys.exit(main_module())
