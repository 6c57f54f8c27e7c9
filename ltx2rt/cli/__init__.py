"""The command line; `python -m ltx2rt.cli` is the `ltx2rt` command."""
