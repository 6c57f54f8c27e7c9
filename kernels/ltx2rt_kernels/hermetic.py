"""Triton's compilation made independent of the machine, and its PTX freed of hidden parameters."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ltx2rt_kernels import ptx
from ltx2rt_kernels.errors import KernelError

#: of personality(2)
ADDR_NO_RANDOMIZE = 0x0040000


@contextmanager
def fixed_addresses() -> Iterator[bool]:
    """Programs started here get the same addresses every time; yields whether they do.

    ptxas 13.1 chooses registers by address: its sm_100a code is another in every fourth run
    otherwise. Linux has this; the profile of a container may refuse it.
    """
    if sys.platform != "linux":
        yield False
        return
    personality = ctypes.CDLL(None).personality
    personality.argtypes = [ctypes.c_ulong]
    before = personality(0xFFFFFFFF)  # asks
    allowed = personality(before | ADDR_NO_RANDOMIZE) != -1
    try:
        yield allowed
    finally:
        personality(before)


@contextmanager
def hermetic_compilation() -> Iterator[None]:
    """Compile without paths of this machine, chance, an old cache, or the hidden parameters."""
    from triton import knobs

    with (
        fixed_addresses(),
        tempfile.TemporaryDirectory() as cache,
        knobs.cache.scope(),
        knobs.compilation.scope(),
        knobs.runtime.scope(),
    ):
        knobs.cache.dir = cache
        knobs.compilation.disable_line_info = True
        knobs.runtime.add_stages_inspection_hook = _plain_parameters
        yield


def _plain_parameters(
    backend: Any = None,
    stages: dict[str, Any] | None = None,
    options: Any = None,
    language: Any = None,
    capability: Any = None,
) -> tuple[str, str] | None:
    """Triton's hook on the compilation stages: PTX loses its hidden parameters before ptxas.

    Called without arguments it names itself, for the key of the cache.
    """
    if stages is None:
        return "ltx2rt", "1"
    make_ptx = stages["ptx"]

    def stage(source: Any, metadata: dict[str, Any]) -> str:
        text = make_ptx(source, metadata)
        sizes = metadata["global_scratch_size"], metadata["profile_scratch_size"]
        if any(sizes):
            raise KernelError(
                f"{metadata['name']} needs {sizes[0]} + {sizes[1]} bytes of scratch memory, which "
                "no launch passes; avoid tensor descriptors made on the device"
            )
        return ptx.drop_hidden_parameters(text)

    stages["ptx"] = stage
    return None
