"""The kernel entry of a PTX text: its parameters, and taking Triton's hidden ones away."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ltx2rt_kernels.errors import KernelError

#: what Triton appends to every kernel: global scratch and profile scratch
HIDDEN_PARAMETERS = 2

_ENTRY = re.compile(r"\.visible \.entry (?P<name>\w+)\((?P<parameters>[^)]*)\)")
_PARAMETER = re.compile(r"\.param \.(?P<type>\w+)[^,]*?(?P<name>\w+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A kernel entry: `types` are PTX types in order, `u64` for pointers; `threads` of a block."""

    name: str
    types: tuple[str, ...]
    threads: int
    version: str
    target: str


def read_entry(ptx: str) -> Entry:
    """The only entry of a PTX text.

    Raises:
        KernelError: there is none, or more than one.
    """
    found = list(_ENTRY.finditer(ptx))
    if len(found) != 1:
        raise KernelError(f"a PTX text must have one kernel entry, this one has {len(found)}")
    return Entry(
        name=found[0]["name"],
        types=tuple(_PARAMETER.search(p.strip())["type"] for p in _split(found[0])),  # type: ignore[index]
        threads=int(re.search(r"^\.reqntid (\d+)", ptx, re.MULTILINE)[1]),  # type: ignore[index]
        version=re.search(r"^\.version (\S+)", ptx, re.MULTILINE)[1],  # type: ignore[index]
        target=re.search(r"^\.target (\S+)", ptx, re.MULTILINE)[1],  # type: ignore[index]
    )


def drop_hidden_parameters(ptx: str) -> str:
    """Remove the two trailing pointers, which a kernel without scratch memory never reads.

    TensorRT passes inputs, integers and outputs only; with them the parameter lists would differ.

    Raises:
        KernelError: the kernel reads one of them.
    """
    read_entry(ptx)
    match = _ENTRY.search(ptx)
    assert match is not None
    parameters = _split(match)
    for hidden in parameters[-HIDDEN_PARAMETERS:]:
        name = hidden.split()[-1]
        if re.search(rf"\b{name}\b", ptx[match.end() :]):
            raise KernelError(f"{match['name']} reads {name}, a scratch pointer that nobody passes")
    kept = ",".join(parameters[:-HIDDEN_PARAMETERS])
    start, end = match.span("parameters")
    return ptx[:start] + kept + "\n" + ptx[end:]


def _split(entry: re.Match[str]) -> list[str]:
    return entry["parameters"].rstrip().split(",")
