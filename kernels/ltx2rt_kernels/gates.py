"""Static checks of a compiled kernel: what would make it slow, wrong or unlaunchable on its GPU.

The disassemblers come with Triton, so this runs where no GPU and no CUDA toolkit is.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx2rt_kernels import ptx
from ltx2rt_kernels.build import PTX_VERSION, Artifact
from ltx2rt_kernels.errors import raise_problems
from ltx2rt_kernels.spec import ARCHITECTURES

#: 32-bit registers of a multiprocessor, all of which one block may take
REGISTER_FILE = 65536

#: loads and stores of a thread's own memory: spilled registers, when the kernel has a stack
SPILL_OPCODES = ("LDL", "STL")

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)")
_PARAMETER_SIZE = re.compile(r"Ordinal : 0x(?P<ordinal>\w+)\s.*Size\s+: 0x(?P<size>\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineCode:
    """What the disassemblers say about a cubin.

    `registers` and `stack` (bytes) are a thread's; `parameter_bytes` are the sizes of the kernel's
    arguments in order.
    """

    registers: int
    stack: int
    opcodes: Counter[str]
    parameter_bytes: tuple[int, ...]

    def count(self, prefix: str) -> int:
        """Instructions whose opcode starts with `prefix` (`"HGMMA"`, `"LDG.E.128"`)."""
        return sum(n for opcode, n in self.opcodes.items() if opcode.startswith(prefix))


def machine_code(cubin: bytes) -> MachineCode:
    """Disassemble a cubin with one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        elf = _tool("cuobjdump", "--dump-elf", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    sizes = {int(m["ordinal"], 16): int(m["size"], 16) for m in _PARAMETER_SIZE.finditer(elf)}
    return MachineCode(
        registers=_number(r"REG:(\d+)", usage),
        stack=_number(r"STACK:(\d+)", usage),
        opcodes=Counter(m["opcode"] for m in _INSTRUCTION.finditer(sass)),
        parameter_bytes=tuple(sizes[i] for i in sorted(sizes)),
    )


def problems(artifact: Artifact, code: MachineCode | None = None) -> list[str]:
    """Everything that is wrong with an artifact; empty when it may ship.

    Args:
        artifact: as built, or as read back.
        code: its machine code, if already disassembled.
    """
    about, architecture = artifact.description, ARCHITECTURES[artifact.description["arch"]]
    code = code or machine_code(artifact.cubin)
    found = [*_file_problems(artifact), *_interface_problems(artifact, code)]
    spills = sum(code.count(o) for o in SPILL_OPCODES)
    if code.stack and spills:
        found.append(f"spills registers: {code.stack} bytes of stack, {spills} loads and stores")
    for opcode in about["opcodes"]:
        if not code.count(opcode):
            found.append(f"has no {opcode} instruction")
    if about["shared"] > architecture.shared_limit:
        found.append(
            f"takes {about['shared']} bytes of shared memory; {architecture.target} has "
            f"{architecture.shared_limit}"
        )
    if code.registers * about["threads"] > REGISTER_FILE:
        found.append(
            f"takes {code.registers} registers for each of {about['threads']} threads; a "
            f"multiprocessor has {REGISTER_FILE}"
        )
    for scratch in ("global_scratch_size", "profile_scratch_size"):
        if about[scratch]:
            found.append(f"needs {scratch} of {about[scratch]} bytes, which no launch passes")
    if about["tensordesc_meta"]:
        found.append("takes tensor descriptors, which no launch passes")
    if about["num_ctas"] != 1:
        found.append(f"runs in clusters of {about['num_ctas']} blocks, which no launch asks for")
    for kind in ("launch_cooperative_grid", "launch_pdl"):
        if about[kind]:
            found.append(f"needs {kind}, which no launch asks for")
    return found


def check(artifact: Artifact) -> None:
    """Raise what `problems` finds.

    Raises:
        KernelError: lists every problem.
    """
    raise_problems(artifact.name, problems(artifact))


def _file_problems(artifact: Artifact) -> list[str]:
    contents = {"ptx": artifact.ptx.encode(), "cubin": artifact.cubin}
    return [
        f"{kind} differs from its description"
        for kind, content in contents.items()
        if artifact.description["files"][kind]["sha256"] != hashlib.sha256(content).hexdigest()
    ]


def _interface_problems(artifact: Artifact, code: MachineCode) -> list[str]:
    """Target, PTX version, and the parameter lists of PTX, cubin and description."""
    about, entry = artifact.description, ptx.read_entry(artifact.ptx)
    architecture = ARCHITECTURES[about["arch"]]
    types = [_ptx_type(p) for p in about["parameters"]]
    sizes = tuple(8 if t == "u64" else 4 for t in types)
    found = []
    if entry.target != architecture.target:
        found.append(f"PTX is for {entry.target}, not for {architecture.target}")
    if _version(entry.version) > PTX_VERSION:
        found.append(f"PTX version {entry.version} is newer than {PTX_VERSION / 10}")
    if entry.threads != about["threads"]:
        found.append(f"PTX wants {entry.threads} threads, its description says {about['threads']}")
    if entry.name != about["entry"]:
        found.append(f"PTX holds {entry.name}, not {about['entry']}")
    if list(entry.types) != types:
        found.append(f"PTX takes {', '.join(entry.types)}; its description says {', '.join(types)}")
    if code.parameter_bytes != sizes:
        found.append(f"cubin takes arguments of {code.parameter_bytes} bytes, not {sizes}")
    return found


def _ptx_type(parameter: Mapping[str, Any]) -> str:
    return "u64" if parameter["type"].startswith("*") else "u32"


def _version(text: str) -> int:
    major, minor = text.split(".")
    return 10 * int(major) + int(minor)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match, f"no {pattern} in the disassembler's answer"
    return int(match[1])


def _tool(name: str, *arguments: str) -> str:
    import triton.backends.nvidia

    path = Path(triton.backends.nvidia.__path__[0]) / "bin" / name
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True)
    return done.stdout
