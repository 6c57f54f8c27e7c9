"""`python -m tests.fuzz.report`: attack everything, and write the numbers into
`docs/reliability.md`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.fuzz.attack import Outcome, attack
from tests.fuzz.targets import TARGETS

PAGE = Path(__file__).resolve().parents[2] / "docs/reliability.md"
BEGIN, END = "<!-- fuzz -->", "<!-- end of fuzz -->"
INPUTS = 1500


def table(outcomes: dict[str, Outcome]) -> str:
    """A row a target, and their sum."""
    rows = [
        "| input | tried | refused in a sentence | accepted | tracebacks, hangs, files written | "
        "slowest | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, o in outcomes.items():
        rows.append(
            f"| {name} | {o.tried} | {o.refused} | {o.accepted} | {len(o.faults)} | "
            f"{o.slowest_s:.2f} s | {o.memory_bytes / 2**20:.0f} MiB |"
        )
    found = outcomes.values()
    rows.append(
        f"| all | {sum(o.tried for o in found)} | {sum(o.refused for o in found)} | "
        f"{sum(o.accepted for o in found)} | {sum(len(o.faults) for o in found)} | "
        f"{max(o.slowest_s for o in found):.2f} s | |"
    )
    return "\n".join(rows)


def main() -> int:
    """0 if nothing but sentences came back; faults go to stderr."""
    outcomes = {}
    for name, target in TARGETS.items():
        with tempfile.TemporaryDirectory() as folder:
            outcomes[name] = attack(target, Path(folder), range(INPUTS))
        for fault in outcomes[name].faults[:5]:
            print(f"{name}: {fault}", file=sys.stderr)
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(outcomes)}\n\n{END}{tail}", encoding="utf-8")
    return 1 if any(o.faults for o in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
