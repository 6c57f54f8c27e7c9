"""Read golden cases from any directory laid out like the reference one, and run them on a backend.

Layout: `components/*.safetensors[.xz]|*.json`, `checkpoints/*[.xz]`, `pipelines/*`. Cases are
recognised by the `component` field of their metadata; handlers in `tests/parity/handlers/` turn a
case's inputs into the outputs it names.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import lzma
import os
import pkgutil
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ltx2rt.engine import Engine
from ltx2rt.weights.safetensors import MappedFiles, SafetensorsFile, TensorEntry
from tests.tolerances import OUTPUT_TOLERANCES, TOLERANCES, Tolerance

BACKENDS = ("torch", "onnxruntime")
REPOSITORY = Path(__file__).resolve().parents[2]


class Skip(Exception):
    """The case cannot run on this backend; the message is the reason."""


@dataclass(frozen=True)
class Case:
    """One golden: inputs, wanted outputs, and what is needed to compute them."""

    name: str
    component: str
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    tolerance_class: str = "json"
    tolerance: Tolerance | None = TOLERANCES["json"]
    data: Any = None


#: what a handler gives for an output that nothing of ours computes
UNREACHED = object()

Handler = Callable[[Case, "Runner"], Mapping[str, Any]]
HANDLERS: dict[str, Handler] = {}


def handles(*components: str) -> Callable[[Handler], Handler]:
    """Register a handler for the cases of these components (`json:<name>` for plain tables)."""

    def register(handler: Handler) -> Handler:
        for component in components:
            HANDLERS[component] = handler
        return handler

    return register


@cache
def load_handlers() -> Mapping[str, Handler]:
    """Import every module of `tests.parity.handlers` and return the registry."""
    package = importlib.import_module("tests.parity.handlers")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"tests.parity.handlers.{module.name}")
    return HANDLERS


def golden_root() -> Path | None:
    """The golden directory: `LTX2RT_GOLDEN`, `../shared/golden`, or the subset in
    `tests/golden`."""
    named = os.environ.get("LTX2RT_GOLDEN")
    for path in (
        Path(named) if named else None,
        REPOSITORY.parent / "shared" / "golden",
        REPOSITORY / "tests/golden",
    ):
        if path is not None and (path / "components").is_dir():
            return path
    return None


def component_files(root: Path) -> list[Path]:
    """All component cases of a directory, in name order; it need not have any."""
    kinds = (".safetensors", ".safetensors.xz", ".json")
    files = [p for p in (root / "components").glob("*") if p.name.endswith(kinds)]
    return sorted(p for p in files if p.name != "index.json")


def case_name(path: Path) -> str:
    """The name of the case that a file holds."""
    return Path(path.name.removesuffix(".xz")).stem


def load_case(path: Path) -> Case:
    """Read one case; inputs shared with another case of the directory are resolved."""
    if path.suffix == ".json":
        return Case(path.stem, f"json:{table_kind(path.stem)}", data=json.loads(path.read_text()))
    file = SafetensorsFile(_unpacked(path))
    meta = file.metadata
    params = json.loads(meta["params"])
    arrays = read_arrays(file)
    inputs = {
        k[3:]: v for k, v in arrays.items() if k.startswith("in.") and k != "in.same_inputs_as"
    }
    if "in.same_inputs_as" in arrays:
        inputs = load_case(case_named(params["inputs"], path.parent)).inputs
    bound = None
    if meta["tolerance_class"] != "info":
        bound = Tolerance(float(meta["atol"]), float(meta["rtol"]), "stored with the case")
    return Case(
        meta["name"],
        meta["component"],
        inputs,
        {k[4:]: v for k, v in arrays.items() if k.startswith("out.")},
        params,
        json.loads(meta["config"]),
        meta["checkpoint"],
        meta["tolerance_class"],
        bound,
    )


def table_kind(stem: str) -> str:
    """The table that a file of plain numbers holds: its name, or the known name inside it."""
    known = [key.removeprefix("json:") for key in load_handlers() if key.startswith("json:")]
    return max((name for name in known if name in stem), key=len, default=stem)


def case_named(name: str, folder: Path) -> Path:
    """The file of a case, which need not have the case's name.

    Raises:
        FileNotFoundError: the folder has no such case.
    """
    for kind in (".safetensors", ".safetensors.xz"):
        if (path := folder / f"{name}{kind}").exists():
            return path
    for other in sorted(folder.glob("*.safetensors*")):
        if SafetensorsFile(_unpacked(other)).metadata.get("name") == name:
            return other
    raise FileNotFoundError(f"no case {name} in {folder}")


def read_arrays(file: SafetensorsFile) -> dict[str, np.ndarray]:
    """All tensors of a file; bfloat16 is widened to float32, other dtypes stay as they are."""
    maps = MappedFiles()
    return {
        name: (maps.load(e, "float32") if e.dtype == "bfloat16" else maps.raw(e)).copy()
        for name, e in file.items()
    }


class Runner:
    """Engines and checkpoints of one golden directory, on one backend."""

    def __init__(self, root: Path, backend: str) -> None:
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r}; allowed: {', '.join(BACKENDS)}.")
        self.root = root
        self.backend = backend
        self._engines: dict[str, Any] = {}

    def checkpoint(self, name: str) -> Path:
        """Path of a checkpoint file or directory; packed files are expanded into a cache once."""
        return _unpacked(self.root / "checkpoints" / name)

    def tensors(self, name: str, prefix: str = "") -> dict[str, TensorEntry]:
        """Tensors of a checkpoint whose names start with `prefix`, without it."""
        file = _open(self.checkpoint(name))
        return {k[len(prefix) :]: e for k, e in file.items() if k.startswith(prefix)}

    def config(self, name: str) -> dict[str, Any]:
        """The `config` metadata of a checkpoint, parsed; {} when there is none."""
        result: dict[str, Any] = json.loads(
            _open(self.checkpoint(name)).metadata.get("config", "{}")
        )
        return result

    def engine(self, component: Any) -> Engine:
        """The component on this backend, with its weights."""
        from ltx2rt.backends.onnxruntime import OrtOptions
        from ltx2rt_export.reference import TorchEngine
        from tests.parity.ort_engine import ort_engine

        key = _key(component)
        if key not in self._engines:
            if self.backend == "torch":
                self._engines[key] = TorchEngine(component)
            else:
                self._engines[key] = ort_engine(exported_graph(component), OrtOptions(threads=1))
        engine: Engine = self._engines[key]
        return engine

    def layers(self, component: Any) -> list[dict[str, np.ndarray]]:
        """Weights of every layer of a repeated component, laid out as this backend's engine takes
        them."""
        from ltx2rt_export.reference import load_weights

        transposed = (
            frozenset[str]() if self.backend == "torch" else exported_graph(component).transposed
        )
        return [load_weights(layer, transposed) for layer in component.layers]


_EXPORTS: dict[str, Any] = {}


def exported_graph(component: Any) -> Any:
    """A component's graph, exported once; the next run of the tests takes it from the cache."""
    from tests.parity.exports import exported

    key = _key(component)
    if key not in _EXPORTS:
        _EXPORTS[key] = exported(component)
    return _EXPORTS[key]


def _key(component: Any) -> str:
    entries = [component.weights, *component.layers]
    where = [
        (n, e.path.name, e.offset, e.shape) for layer in entries for n, e in sorted(layer.items())
    ]
    return repr(
        (
            component.name,
            component.inputs,
            component.outputs,
            where,
            sorted(component.options.items()),
            repr(component.module),
        )
    )


@cache
def _open(path: Path) -> SafetensorsFile:
    return SafetensorsFile(path)


def _unpacked(path: Path) -> Path:
    """A file that may be there packed only; or that is named by its packed name."""
    if path.suffix != ".xz" and path.exists():
        return path
    return _unpack(path if path.suffix == ".xz" else path.with_name(f"{path.name}.xz"))


@cache
def _unpack(archive: Path) -> Path:
    if not archive.exists():
        raise Skip(f"{archive.stem} is not in this directory")
    stat = archive.stat()
    folder = Path(tempfile.gettempdir()) / f"ltx2rt-golden-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    target = folder / f"{stat.st_size}-{int(stat.st_mtime)}-{archive.stem}"
    if not target.exists():
        handle, temporary = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "wb") as out, lzma.open(archive) as packed:
            shutil.copyfileobj(packed, out)
        Path(temporary).replace(target)
    return target


@dataclass(frozen=True)
class Result:
    """One line of a golden run."""

    case: str
    backend: str
    passed: bool
    skipped: str | None
    max_abs: float | None
    rel_rms: float | None
    tolerance_class: str
    detail: str = ""


def run_case(case: Case, runner: Runner) -> Result:
    """Run one component case and compare every output it names."""
    handler = load_handlers().get(case.component)
    if handler is None:
        reason = f"component {case.component} is not supported yet"
        return Result(case.name, runner.backend, False, reason, None, None, case.tolerance_class)
    try:
        got = handler(case, runner)
    except Skip as reason:
        return Result(
            case.name, runner.backend, False, str(reason), None, None, case.tolerance_class
        )
    if case.data is not None:
        pairs = {k: (np.asarray(g), np.asarray(w)) for k, (g, w) in got.items()}
    else:
        reached = {k: got[k] for k in case.outputs if got.get(k, UNREACHED) is not UNREACHED}
        pairs = {k: (np.asarray(v), case.outputs[k]) for k, v in reached.items()}
    result = compare(case, runner.backend, pairs, sorted(set(case.outputs) - set(got)))
    left_out = [k for k, v in got.items() if v is UNREACHED]
    if not result.passed or not left_out:
        return result
    return dataclasses.replace(result, detail=f"without {', '.join(left_out)}")


def compare(case: Case, backend: str, pairs: Mapping[str, Any], missing: list[str]) -> Result:
    """Element-wise bound of the case's tolerance class over all outputs."""
    worst = square = reference = 0.0
    failures = [f"no output {name}" for name in missing]
    for name, (got, want) in pairs.items():
        if got.shape != want.shape:
            failures.append(f"{name}: shape {got.shape}, expected {want.shape}")
            continue
        if want.size == 0:
            continue
        wide, target = got.astype(np.float64), want.astype(np.float64)
        difference = np.abs(wide - target)
        worst = max(worst, float(difference.max()))
        square += float((difference**2).sum())
        reference += float((target**2).sum())
        bound = OUTPUT_TOLERANCES.get((case.component, name), case.tolerance)
        if bound and not bool((difference <= bound.atol + bound.rtol * np.abs(target)).all()):
            failures.append(f"{name}: max_abs {difference.max():.3g} is over the bound")
        elif not np.isfinite(wide).all():
            failures.append(f"{name}: not finite")
    rel = (square / reference) ** 0.5 if reference else square**0.5
    return Result(
        case.name,
        backend,
        not failures,
        None,
        worst,
        rel,
        case.tolerance_class,
        "; ".join(failures[:3]),
    )
