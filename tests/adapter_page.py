"""The tables of docs/files.md, from what tests load (`tests.adapter_cases`, `tests.layout_cases`).

`python -m tests.adapter_page` (or `make docs`) writes them again; a test compares.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.adapter_cases import BY_HAND, LYCORIS, NAMINGS, PEFT, REFUSED, TENSORS
from tests.layout_cases import LAYOUTS

PAGE = Path(__file__).resolve().parents[1] / "docs/files.md"
BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end of \2 -->\n)", re.DOTALL)
MODULE = "transformer_blocks.0.attn1.to_q"


def rewritten(text: str) -> str:
    """The page with its tables made anew."""
    made = {"adapters": tables, "layouts": layouts}
    return BLOCK.sub(lambda m: m[1] + "\n".join(["", *made[m[2]](), ""]) + m[3], text)


def layouts() -> list[str]:
    lines = ["| layout | given as | tested with |", "|---|---|---|"]
    lines += [f"| {row.name} | {row.given} | {row.tested} |" for row in LAYOUTS if row.tested]
    lines += ["", "Refused:", "", "| layout | why |", "|---|---|"]
    return lines + [f"| {row.name} | {row.refused} |" for row in LAYOUTS if row.refused]


def tables() -> list[str]:
    lines = ["| kind | tensors | same weights as |", "|---|---|---|"]
    for kind in dict.fromkeys([*PEFT, *LYCORIS]):
        trainers = [n for n, kinds in (("LyCORIS", LYCORIS), ("PEFT", PEFT)) if kind in kinds]
        tensors = TENSORS[max((k for k in TENSORS if kind.startswith(k)), key=len)]
        lines.append(f"| {kind} | {tensors} | {', '.join(trainers)} |")
    lines += [f"| {kind} | {tensors} | by hand |" for kind, tensors in BY_HAND.items()]
    lines += ["", "Refused:", "", "| kind | why |", "|---|---|"]
    lines += [f"| {kind} | {why} |" for kind, why in REFUSED.items()]
    lines += ["", "Names (of one layer; `alpha` beside them counts under each):", ""]
    lines += ["| naming | down, up |", "|---|---|"]
    for naming, (spell, *halves) in NAMINGS.items():
        down, up = halves or (".lora_A.weight", ".lora_B.weight")
        lines.append(f"| {naming} | `{spell(MODULE)}{down}`, `…{up}` |")
    return lines


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
    sys.exit(0)
