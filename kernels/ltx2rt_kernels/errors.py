"""The one exception of this package."""

from __future__ import annotations

from collections.abc import Sequence


class KernelError(Exception):
    """A kernel cannot be built, found or launched as asked; one sentence, or a list of problems."""


def raise_problems(what: str, problems: Sequence[str]) -> None:
    """Raise all problems found as one `KernelError`; nothing happens without one."""
    if not problems:
        return
    if len(problems) == 1:
        raise KernelError(f"{what}: {problems[0]}")
    lines = "\n".join(f"  - {p}" for p in problems)
    raise KernelError(f"{what} ({len(problems)} problems):\n{lines}")
