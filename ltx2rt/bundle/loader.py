"""Hand out what is in an opened bundle: engines, stacks of engines, weights."""

from __future__ import annotations

import dataclasses
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from ltx2rt.backends.device_stack import DeviceEngine, DeviceStack
from ltx2rt.backends.host_stack import HostStack
from ltx2rt.backends.layer_engines import LayerEngines
from ltx2rt.backends.split_stack import SplitStack
from ltx2rt.backends.stack import Stack
from ltx2rt.backends.tensorrt import TrtEngine
from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.card import Card, open_card, trust_of
from ltx2rt.bundle.host_plan import HostPlan, plan_host
from ltx2rt.bundle.load_weights import engine_tensors, lora_tensors, stored_tensor
from ltx2rt.bundle.manifest import UNMASKED
from ltx2rt.bundle.request_sizes import RequestSizes, covers
from ltx2rt.components.stack_plans import stack_plan
from ltx2rt.config import RuntimeConfig
from ltx2rt.engine import Array, Engine
from ltx2rt.errors import UnsupportedError
from ltx2rt.lora.adapter import official_tensor
from ltx2rt.lora.files import Lora
from ltx2rt.lora.merger import LoraMerger
from ltx2rt.machine import machine_bytes
from ltx2rt.names import (
    ADAPTED_COMPONENTS,
    TEXT_TAIL,
    TRANSFORMER_BLOCKS,
    TRANSFORMER_STACK,
    WRITING_STACK,
    StackNames,
)
from ltx2rt.weights.precision import PRECISIONS
from ltx2rt.weights.safetensors import MappedFiles

if TYPE_CHECKING:
    from ltx2rt.backends.onnxruntime import OrtOptions

#: more threads than this wait for the memory that they share
_MERGE_THREADS = 8

E = TypeVar("E", bound=Engine)


class Loader:
    """A `source.ModelLoader` over a bundle. Weights come from the mapped files; LoRAs are merged
    while they are loaded. Everything that runs on a GPU shares its memory, of which one plan is
    made when the first engine is asked for.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._files = MappedFiles()
        self._cards: dict[int, Card] = {}
        self._sizes: RequestSizes | None = None
        # devices load their layers, and sound its engines, in threads of their own
        self._loading = threading.Lock()
        self._merger: tuple[tuple[Lora, ...], LoraMerger] | None = None

    def close(self) -> None:
        """Leave the GPU to the engines that are still open; the last one frees it."""
        while self._cards:
            self._cards.popitem()[1].close()

    def plan_for(self, sizes: RequestSizes | None) -> None:
        """The next request: a GPU without room for the largest sizes of the bundle is planned for
        those of the request.

        Args:
            sizes: None: they are not known, and any may come.

        Raises:
            UnsupportedError: it is planned for a smaller one, of which engines are still loaded.
        """
        self._sizes = sizes
        for number, card in list(self._cards.items()):
            if card.sizes is None or (sizes is not None and covers(card.sizes, sizes)):
                continue
            if not card.is_idle:
                raise UnsupportedError(
                    "the memory of the GPU is planned for a smaller clip, whose engines are still "
                    f"loaded: decode or drop that clip first. It is planned so since {card.refused}"
                )
            self._cards.pop(number).close()

    def sound_is_apart(self, runtime: RuntimeConfig) -> bool:
        """Whether the engines that decode sound share nothing with the others on the GPU, which is
        taken already.
        """
        card = self._cards.get(runtime.gpu or 0)
        return card is not None and card.sound is not None

    def picture_is_apart(self, runtime: RuntimeConfig) -> bool:
        """The same of the engines that decode the picture. Not where the GPU is planned for one
        request: the next one may have it planned anew.
        """
        card = self._cards.get(runtime.gpu or 0)
        return card is not None and card.picture is not None and card.sizes is None

    def check_loras(self, loras: Sequence[Lora]) -> None:
        """Match LoRA files to this bundle's model and look through their numbers.

        Raises:
            CheckpointError, UnsupportedError: see `LoraMerger`.
        """
        self._merger = None
        self._merge_of(loras)

    def text_loras(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        """Those that change connectors or projections, and so the contexts of prompts."""
        merger = self._merge_of(loras)
        if merger is None or not self._bundle.has(TEXT_TAIL):
            return ()
        return merger.loras_for(self._bundle.official_tensors(TEXT_TAIL))

    def engine(self, name: str, runtime: RuntimeConfig) -> Engine:
        """Load a component's engine on this bundle's backend.

        Raises:
            BundleError: the bundle was built without it, or the engine does not fit this machine.
            UnsupportedError: no GPU, or one that is too small; see `TrtEngine` for more.
        """
        return self._open(name, runtime)

    def stage_of(self, name: str, runtime: RuntimeConfig) -> str | None:
        """The stage whose turn it is when a component is loaded, where a GPU has room for one stage
        at a time: nothing of another one may be loaded then. None where it has room for all.

        Raises:
            BundleError, UnsupportedError: see `engine`.
        """
        if not self._bundle.component(name).engines:
            return None
        return self._card_of(runtime).stage_of(name)

    def stack(self, names: StackNames, runtime: RuntimeConfig, loras: Sequence[Lora] = ()) -> Stack:
        """The components of a stack as one; weights are loaded when a layer first needs them. That
        of the transformer is on every device of `runtime`.

        Raises:
            BundleError, UnsupportedError: see `engine`; also for a LoRA that cannot be merged.
        """
        if len(runtime.devices) < 2 or names != TRANSFORMER_STACK:
            return self._stack(names, runtime, loras)
        with ExitStack() as opened:
            stacks = []
            for number in runtime.devices:
                here = dataclasses.replace(runtime, device=number, devices=())
                stacks.append(self._stack(names, here, loras))
                opened.callback(stacks[-1].close)
            opened.pop_all()
        return SplitStack(stacks)

    def _stack(self, names: StackNames, runtime: RuntimeConfig, loras: Sequence[Lora]) -> Stack:
        bundle = self._bundle
        served = {n: bundle.component(n).served for n in names.blocks if bundle.has(n)}
        plan = stack_plan(names, bundle.options, served)

        def load_weights(name: str, index: int) -> Mapping[str, Array]:
            with self._loading:
                return {} if self._holds(name) else self.weights(name, index, loras)

        with ExitStack() as opened:
            if not self._on_gpu(names.head, runtime):
                host = self._engines(opened, lambda n, _: self._host_part(n, runtime, loras))
                resident = runtime.residency == "resident"
                room = plan_host(bundle.manifest, machine_bytes(), resident=resident)
                if room.streams and names == TRANSFORMER_STACK:
                    warnings.warn(f"{room.text()}.", stacklevel=2)
                stack: Stack = HostStack(
                    plan.parts(host, load_weights, self._unmasked(host)),
                    keep=room.keep_text or not names.runs_once,
                    kept_layers=_kept_layers(names, room),
                )
            else:
                card = self._card_of(runtime)
                opened.callback(card.memory.opened().close)
                device = self._engines(
                    opened, lambda n, layer: self._stack_engine(n, runtime, loras, layer)
                )
                stack = DeviceStack(
                    plan.parts(device, load_weights, self._unmasked(device)),
                    card.memory,
                    keep=card.keep_text or not names.runs_once,
                    graphs=runtime.cuda_graphs,
                    places=card.places(names),
                    left_free=card.ring(names) if names == WRITING_STACK else 0,
                )
            opened.pop_all()
        return stack

    def layer_engine(self, name: str, index: int, runtime: RuntimeConfig) -> Engine:
        """The engine that runs one layer of a repeated component, on its own; see `engine`."""
        return self._open(name, runtime, (), index)

    def weights(self, name: str, index: int = 0, loras: Sequence[Lora] = ()) -> dict[str, Array]:
        """The weights of one layer (of a component that runs once: 0) as its engine takes them.

        Raises:
            CheckpointError, UnsupportedError: a LoRA that cannot be merged; see `LoraMerger`.
        """
        entry, loaded = self._bundle.component(name), dict[str, Array]()
        overlay = entry.overlays[index] if entry.overlays else {}
        adapted = {f"{module}.weight" for module in entry.options.get("lora_inputs", ())}
        merger = self._merge_of(loras) if name in ADAPTED_COMPONENTS else None
        for weight, ref in entry.layers[index].items():
            official, tensor = official_tensor(name, index, weight), self._bundle.entry(weight, ref)
            if weight in adapted:
                loaded |= lora_tensors(entry, weight, ref.shape, official, merger)
            if merger is not None and official in merger.changed and weight not in adapted:
                values, dtype = merger.merge(official, tensor), "float32"
            elif weight in overlay:
                continue
            else:
                values, dtype = self._files.values(tensor)
            loaded |= engine_tensors(entry, weight, values, dtype, f"{weight} of {tensor.path}")
        for ready in overlay.keys() - loaded.keys():
            array = self._files.raw(self._bundle.entry(ready, overlay[ready]))
            loaded[ready] = stored_tensor(entry, ready, array)
        return loaded

    def _engines(
        self, opened: ExitStack, open_engine: Callable[[str, int], E]
    ) -> Callable[[str, int], E]:
        """Engines by component and layer, each opened once, and closed with `opened`."""
        found: dict[tuple[str, int], E] = {}

        def engine(name: str, index: int) -> E:
            key = name, index if self._bundle.component(name).layered else 0
            if key not in found:
                found[key] = open_engine(*key)
                opened.callback(found[key].close)
            return found[key]

        return engine

    def _unmasked(self, engine: Callable[[str, int], E]) -> Callable[[str, int], E | None]:
        """The engine that runs a layer without masks, where the bundle has one."""

        def unmasked(name: str, index: int) -> E | None:
            name += UNMASKED
            return engine(name, index) if self._bundle.has(name) else None

        return unmasked

    def _open(
        self, name: str, runtime: RuntimeConfig, loras: Sequence[Lora] = (), index: int = 0
    ) -> Engine:
        if self._bundle.component(name).engines:
            return self._device_engine(name, runtime, loras, index)
        part = self._host_part(name, runtime, loras)
        if not isinstance(part, LayerEngines):
            return part
        return part.holding(self.weights(name.removesuffix(UNMASKED), index, loras))

    def _on_gpu(self, name: str, runtime: RuntimeConfig) -> bool:
        """Whether a component runs on a GPU: as an engine, or by ONNX Runtime, where a GPU was
        asked for or a CPU cannot run the bundle.

        Raises:
            UnsupportedError: a GPU was asked for, and the bundle is for CPUs.
        """
        entries = self._bundle.manifest.components.values()
        if runtime.gpu is not None and any(e.weight_binding == "layer" for e in entries):
            manifest = self._bundle.manifest
            raise UnsupportedError(
                f"this bundle ({manifest.precision}, one session a layer) runs on a CPU only, and "
                "--device asks for a GPU; leave it out, or build for the GPU: ltx2rt build --for "
                "this."
            )
        if self._bundle.component(name).engines or runtime.gpu is not None:
            return True
        return not all(PRECISIONS[entry.precision].on_cpu for entry in entries)

    def _host_part(self, name: str, runtime: RuntimeConfig, loras: Sequence[Lora]) -> Engine:
        """An engine of ONNX Runtime that takes and gives host arrays, wherever it runs; or what
        opens those of the layers.
        """
        from ltx2rt.backends import onnxruntime, onnxruntime_cuda

        entry = self._bundle.component(name)
        spec, options = entry.spec(name), self._session_options(name, runtime)
        graph = (self._bundle.folder / entry.graph).read_bytes()
        if entry.weight_binding == "layer":
            return LayerEngines(
                spec, lambda w: onnxruntime.OrtEngine(graph, spec, w, options, copied=True)
            )
        weights = self._inside(name, loras)
        if not self._on_gpu(name, runtime):
            return onnxruntime.OrtEngine(graph, spec, weights, options)
        options = onnxruntime_cuda.on_gpu(options, runtime.gpu or 0)
        open_session = onnxruntime_cuda.open_session
        return onnxruntime.OrtEngine(graph, spec, weights, options, open_session)

    def _session_options(self, name: str, runtime: RuntimeConfig) -> OrtOptions:
        from ltx2rt.backends.onnxruntime import OrtOptions

        return OrtOptions(
            threads=runtime.threads,
            spinning=runtime.spinning,
            arena=name.removesuffix(UNMASKED) not in TRANSFORMER_BLOCKS,  # the longest tensors
            full_optimization="float8_e4m3fn"
            not in self._bundle.component(name).weight_dtypes.values(),
        )

    def _inside(self, name: str, loras: Sequence[Lora]) -> Mapping[str, Array]:
        """The weights that an engine takes when it is loaded."""
        if self._bundle.component(name).weight_binding == "initializer":
            with self._loading:
                return self.weights(name, 0, loras)
        return {}

    def _holds(self, name: str) -> bool:
        """Whether a part of a stack has its weights inside. Engines of TensorRT take them as
        inputs, those of head and tail too: the memory of layers is where they are planned.
        """
        entry = self._bundle.component(name)
        if entry.engines:
            return any(e.weights == "constant" for e in entry.engines)
        return entry.weight_binding == "initializer"

    def _stack_engine(
        self, name: str, runtime: RuntimeConfig, loras: Sequence[Lora], index: int
    ) -> DeviceEngine:
        entry = self._bundle.component(name)
        if entry.engines:
            return self._device_engine(name, runtime, loras, index, bound=False)
        from ltx2rt.backends.onnxruntime_cuda import OrtDeviceEngine, on_gpu, open_session

        card, number = self._card_of(runtime), runtime.gpu or 0
        compute = card.memory.device.compute
        options = on_gpu(self._session_options(name, runtime), number, compute)
        graph = (self._bundle.folder / entry.graph).read_bytes()
        weights = self._inside(name, loras)
        session = open_session(graph, name, weights, options)
        return OrtDeviceEngine(session, entry.spec(name), weights, card.memory, number)

    def _device_engine(
        self,
        name: str,
        runtime: RuntimeConfig,
        loras: Sequence[Lora],
        index: int,
        *,
        bound: bool = True,
    ) -> TrtEngine:
        """The engine of a component, or, where engines hold their weights, of one of its layers;
        `bound`: it gets its weights now, not at every call.
        """
        entry, manifest = self._bundle.component(name), self._bundle.manifest
        inside = any(e.weights == "constant" for e in entry.engines)
        if inside and self._is_changed(name, loras):
            raise UnsupportedError(
                f"a LoRA cannot be merged into the engine of {name}, which holds its weights as "
                "constants; build again with --weights input: "
                + manifest.command().replace(" --weights constant", "")
            )
        file = entry.engines[entry.served.index(index) if entry.layered else 0].file
        card = self._card_of(runtime)
        card.enter(name)
        return TrtEngine(
            self._bundle.folder / file,
            entry.spec(name),
            {} if inside or not bound else self._inside(name, loras),
            manifest.command(),
            memory=card.memory_of(name),
            specialize=runtime.kernels.upper(),
            trust=trust_of(runtime),
        )

    def _card_of(self, runtime: RuntimeConfig) -> Card:
        """The memory of the GPU, taken with the first engine, and how it is divided.

        Raises:
            BundleError: an engine does not fit this machine.
            UnsupportedError: no GPU, or one without room for this bundle.
        """
        number = runtime.gpu or 0
        if number not in self._cards:
            self._cards[number] = open_card(self._bundle, runtime, self._sizes)
        return self._cards[number]

    def _is_changed(self, name: str, loras: Sequence[Lora]) -> bool:
        merger = self._merge_of(loras)
        return merger is not None and not merger.changed.isdisjoint(
            self._bundle.official_tensors(name)
        )

    def _merge_of(self, loras: Sequence[Lora]) -> LoraMerger | None:
        active = tuple(lora for lora in loras if lora.strength)
        if not active:
            return None
        if self._merger is None or self._merger[0] != active:
            bundle = self._bundle
            unmerged = {
                official
                for name in filter(bundle.has, TRANSFORMER_BLOCKS)
                for official, (_, weight, _) in bundle.official_tensors(name).items()
                if weight.removesuffix(".weight") in bundle.options(name).get("lora_inputs", ())
            }
            threads = min(os.cpu_count() or 1, _MERGE_THREADS)
            targets = bundle.lora_targets()
            self._merger = active, LoraMerger(active, targets, unmerged=unmerged, threads=threads)
        return self._merger[1]


def _kept_layers(names: StackNames, room: HostPlan) -> int | None:
    """How many layers of a stack stay in this machine's memory; None: all that are kept at all."""
    if names.runs_once:
        return None
    return room.kept_writing if names == WRITING_STACK else room.kept
