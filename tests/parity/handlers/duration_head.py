"""Duration head: seconds from both contexts, or from one."""

from __future__ import annotations

import numpy as np

from ltx2rt_export.modules.duration_head import duration_head
from tests.parity.golden import Case, Runner, handles


@handles("duration_head")
def predict(case: Case, run: Runner) -> dict[str, np.ndarray]:
    """One output per choice of contexts."""
    config = run.config(case.checkpoint).get("duration_head") or {}
    tensors = run.tensors(case.checkpoint, "duration_head.")
    found = {}
    for name in case.outputs:
        component = duration_head(config, tensors, "av" if name == "both" else name)
        streams = [s.name.removesuffix("_context") for s in component.inputs]
        contexts = {f"{stream}_context": case.inputs[stream] for stream in streams}
        found[name] = run.engine(component)(contexts)["seconds"]
    return found
