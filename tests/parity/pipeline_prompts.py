"""Which texts a pipeline case was made with, and where what they were encoded to is stored.

A case holds `prompts`, a name for each text. Any names do: those that begin with `n` (`n0`,
`negative`) are negative prompts; without one, the second text is the negative one. Where `call`
names a text (`prompt`, `negative_prompt`), that one is meant.

Contexts lie beside the cases in safetensors files that are no case: `<name of a text>.video` and
`.audio`. A case may name its file (`contexts`); else the file is the one whose name says the case,
or else the model; where both arithmetics are stored, a file of bfloat16 says `bf16` too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx2rt.engine import Array
from ltx2rt.weights.safetensors import SafetensorsFile
from tests.parity.golden import read_arrays

#: arguments that name a text of the case
TEXT_ARGUMENTS = ("prompt", "negative_prompt")


def prompt_names(case: Mapping[str, Any]) -> tuple[str, str | None]:
    """Names of the prompt and of the negative prompt (None: the case has none)."""
    names, call = list(case["prompts"]), case["call"]
    negative = [n for n in names if n.lower().startswith("n")]
    positive = [n for n in names if n not in negative]
    if not positive or not negative:
        positive, negative = names[:1], names[1:2]
    chosen = call.get("prompt", positive[0])
    return chosen, call.get("negative_prompt", negative[0] if negative else None)


def stored_contexts(path: Path, case: Mapping[str, Any]) -> dict[str, Array]:
    """`context.video`, `context.audio` of the case's prompt; {} where the directory has none."""
    file = _contexts_file(path, case)
    if file is None:
        return {}
    prompt, _ = prompt_names(case)
    stored = read_arrays(SafetensorsFile(file))
    return {f"context.{m}": stored[f"{prompt}.{m}"] for m in ("video", "audio")}


def _contexts_file(path: Path, case: Mapping[str, Any]) -> Path | None:
    if "contexts" in case:
        return path.with_name(case["contexts"])
    prompt, _ = prompt_names(case)
    found = [
        file
        for file in sorted(path.parent.glob("*.safetensors"))
        if not file.with_suffix(".json").exists() and f"{prompt}.video" in SafetensorsFile(file)
    ]
    own = [file for file in found if file.stem.startswith((f"{path.stem}_", f"{path.stem}."))]
    models = {case["model"], case["model"].replace(".", "")}
    of_model = [file for file in found if models & set(re.split("[_-]", file.stem))]
    bfloat16 = bool(case.get("native_bf16"))
    fitting = [file for file in own or of_model if ("bf16" in file.stem) == bfloat16]
    return fitting[0] if fitting else None
