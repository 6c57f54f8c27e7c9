"""`ltx2rt verify --bisect`: a component of a bundle, its engine against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx

from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.engine_file import read_info
from ltx2rt.bundle.loader import Loader
from ltx2rt.bundle.manifest import UNMASKED, ComponentEntry
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Array
from ltx2rt.errors import EngineError, OptionError
from ltx2rt.names import TRANSFORMER_BLOCK, TRANSFORMER_BLOCK_PLAIN
from ltx2rt.weights.floats import as_dtype
from ltx2rt.weights.precision import PRECISIONS
from ltx2rt_export.bisect.engine_side import EngineSide
from ltx2rt_export.bisect.find import Finding, find_first
from ltx2rt_export.bisect.marks import typed
from ltx2rt_export.bisect.ort_side import OrtSide
from ltx2rt_export.bisect.search import difference
from ltx2rt_export.component import Component
from ltx2rt_export.example_inputs import example_inputs
from ltx2rt_export.graph_file import check_layer
from ltx2rt_export.verify import allowed_sizes, run_engine


def check_request(bundle: Bundle, name: str, layer: int, folder: Path) -> ComponentEntry:
    """Refuse what cannot be compared or written, before anything is loaded.

    Raises:
        BundleError: the bundle has no such component.
        OptionError: no engine, no such layer, or a folder that is not empty.
    """
    entry = bundle.component(name)
    if not entry.engines:
        raise OptionError(
            f"{bundle.folder} has no engine of {name}: --bisect compares engines of TensorRT and "
            "TensorRT-RTX with ONNX Runtime, which is what runs this bundle; leave --bisect out to "
            "compare it with PyTorch."
        )
    check_layer(name, entry, layer)
    if not folder.absolute().parent.is_dir():
        raise OptionError(f"the folder of {folder} does not exist; create it first.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OptionError(f"{folder} exists and is no empty folder; name another.")
    return entry


def bisect_component(
    bundle: Bundle,
    components: Sequence[Component],
    name: str,
    folder: Path,
    *,
    layer: int = 0,
    bound: float | None = None,
    seed: int = 0,
    runtime: RuntimeConfig | None = None,
    on_probe: Callable[[Sequence[str]], None] = lambda names: None,
) -> Finding:
    """Find the first node at which a component's engine differs from ONNX Runtime in float32 on the
    same graph, inputs and weights; save it with its inputs.

    Args:
        components: made anew from the checkpoint files (`bundle.make_components`).
        name: as in the manifest; `transformer_block_unmasked` for passes without masks.
        folder: of the case; none, or an empty one.
        bound: relative RMS from which tensors differ; None: that of the component's precision.
        seed: of the random inputs.
        on_probe: called with the tensors that are asked for, before an engine is built for them.

    Raises:
        BundleError, OptionError: see `check_request`; also where nothing differs.
        UnsupportedError: no GPU, or operators that only one side has.
        EngineError: a side fails, or an engine that is built now does not differ.
        OSError: the case cannot be written.
    """
    entry, runtime = check_request(bundle, name, layer, folder), runtime or RuntimeConfig()
    bound = PRECISIONS[entry.precision].tolerance if bound is None else bound
    base = name.removesuffix(UNMASKED)
    made = TRANSFORMER_BLOCK if base == TRANSFORMER_BLOCK_PLAIN else base
    component = next(c for c in components if c.name == made)
    floats = example_inputs(component, np.random.default_rng(seed), allowed_sizes(component, entry))
    with closing(Loader(bundle)) as loader:
        weights = loader.weights(base, layer)
        with loader.layer_engine(name, layer, runtime) as engine:
            bound_now = entry.weight_binding == "input" and not entry.layered
            got = run_engine(engine, floats, weights if bound_now else {})
    model = typed(onnx.load(str(bundle.folder / entry.graph), load_external_data=False))
    inputs = {t.name: as_dtype(floats[t.name], t.dtype) for t in entry.inputs}
    reference = OrtSide(name, model, {**inputs, **weights}, runtime.threads)
    worst = _worst(got, reference.values(list(got)))
    if worst <= bound:
        raise OptionError(
            f"nothing to bisect: the engine of {name} agrees with ONNX Runtime (relative RMS "
            f"{worst:.2e}, the bound is {bound:.0e}; --bound sets another)."
        )
    file = entry.engines[entry.served.index(layer) if entry.layered else 0].file
    suspect = EngineSide(model, read_info(bundle.folder / file), inputs, weights, runtime)
    found = find_first(reference, suspect, inputs, weights, bound, folder, on_probe)
    if found is None:
        raise EngineError(
            f"the engine of {name} in {bundle.folder} differs from ONNX Runtime (relative RMS "
            f"{worst:.2e}), but one that is built of the same graph now does not: build the bundle "
            f"again with {bundle.manifest.command()}."
        )
    return found


def _worst(got: dict[str, Array], want: dict[str, Array]) -> float:
    """The largest relative RMS; NaN where there is one."""
    return float(np.max([difference(got[name], want[name]).rel_rms for name in want]))
