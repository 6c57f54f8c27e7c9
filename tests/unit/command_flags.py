"""Flags of `ltx2rt generate` as a command line gives them."""

from __future__ import annotations

from typing import Any

from ltx2rt.cli.generate import add_arguments, given_in
from ltx2rt.cli.parser import Parser


def given_by(*arguments: str) -> dict[str, Any]:
    """What the flags of a command line hold."""
    parser = Parser()
    add_arguments(parser)
    return given_in(parser.parse_args(["bundle", *arguments]))
