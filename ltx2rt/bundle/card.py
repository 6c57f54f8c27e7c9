"""The GPU that a bundle runs on: its memory, taken once, and how it is divided."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ltx2rt.backends.device_memory import DeviceMemory
from ltx2rt.backends.engine_checks import (
    Trust,
    check_gpu,
    check_host_code,
    check_plugins,
    check_version,
)
from ltx2rt.backends.engine_needs import engine_needs
from ltx2rt.backends.layer_memory import RING
from ltx2rt.backends.tensorrt_api import load
from ltx2rt.bundle.bundle import Bundle
from ltx2rt.bundle.engine_file import read_info
from ltx2rt.bundle.manifest import UNMASKED
from ltx2rt.bundle.memory_plan import PICTURE_ENGINES, SOUND_ENGINES, MemoryPlan, room_on
from ltx2rt.bundle.request_sizes import RequestSizes, narrowed
from ltx2rt.bundle.stage_plan import plan_card_memory
from ltx2rt.config import RuntimeConfig
from ltx2rt.device.cuda import CudaDevice
from ltx2rt.errors import UnsupportedError
from ltx2rt.names import DENOISE, StackNames, stage_of
from ltx2rt.trace import PICTURE, SOUND

#: of a card, what is left for the activations of ONNX Runtime, which no plan knows
_ACTIVATION_SHARE = 4


@dataclass(slots=True, kw_only=True)
class Card:
    """What engines of one bundle share.

    Attributes:
        plan: how `memory` is divided; None with ONNX Runtime, which takes what it needs.
        keep_text: the layers of the text encoder stay between clips.
        sound: of the engines that decode sound, with streams of its own; None: it is `memory`.
        picture: the same of those that decode the picture.
        sizes: what it is planned for alone, since the bundle's largest were `refused`; None: all.
    """

    memory: DeviceMemory
    plan: MemoryPlan | None
    keep_text: bool
    sound: DeviceMemory | None = None
    picture: DeviceMemory | None = None
    sizes: RequestSizes | None = None
    refused: str = ""
    _stage: str = DENOISE

    @property
    def is_idle(self) -> bool:
        """Whether no engine uses it."""
        return all(memory.is_idle for memory in self._memories)

    @property
    def _memories(self) -> list[DeviceMemory]:
        lanes = (self.memory, self.sound, self.picture)
        return [memory for memory in lanes if memory is not None]

    def memory_of(self, name: str) -> DeviceMemory:
        """That of a component's engine."""
        if self.sound is not None and name in SOUND_ENGINES:
            return self.sound
        if self.picture is not None and name in PICTURE_ENGINES:
            return self.picture
        return self.memory

    def close(self) -> None:
        """Leave it to the engines that are still open."""
        for memory in self._memories:
            memory.close()

    def stage_of(self, component: str) -> str | None:
        """The stage that a component has the card for, or None: it has room for all of them."""
        divided = self.plan is not None and self.plan.stages
        return stage_of(component.removesuffix(UNMASKED)) if divided else None

    def enter(self, component: str) -> None:
        """Divide the memory for the stage of a component that is loaded now; nothing of another one
        is.
        """
        stage = self.stage_of(component)
        if stage is not None and stage != self._stage:
            assert self.plan is not None
            self.memory.divide(self.plan.stages[stage])
            self._stage = stage

    def places(self, names: StackNames) -> tuple[int, ...]:
        """Bytes of each place that parts of a stack take turns in; zeros: nothing knows."""
        return self.plan.places[names] if self.plan is not None else (0,) * RING

    def ring(self, names: StackNames) -> int:
        """See `MemoryPlan.ring`; 0 where nothing is planned."""
        return self.plan.ring(names) if self.plan is not None else 0


def open_card(bundle: Bundle, runtime: RuntimeConfig, sizes: RequestSizes | None = None) -> Card:
    """Take the GPU that `runtime` names, or the first.

    Args:
        sizes: of a request; where there is no room for the largest that the bundle was built for,
            it is planned for these alone.

    Raises:
        BundleError: an engine does not fit this machine.
        UnsupportedError: no GPU, or one without room for this bundle.
    """
    manifest, resident = bundle.manifest, runtime.residency == "resident"
    device = CudaDevice(f"backend {manifest.backend} on a GPU", runtime.gpu or 0)
    try:
        if not any(entry.engines for entry in manifest.components.values()):
            reserve = device.gpu.memory_bytes // _ACTIVATION_SHARE
            memory = DeviceMemory(device, reserve=reserve).opened()
            return Card(memory=memory, plan=None, keep_text=resident)
        refused, planned = "", None
        try:
            plan = _plan(bundle, device, trust_of(runtime), resident=resident)
        except UnsupportedError as error:
            if sizes is None:
                raise
            refused, planned = str(error), sizes
            plan = _plan(bundle, device, trust_of(runtime), resident=resident, sizes=sizes)
        memory = DeviceMemory(device, plan.regions).opened()
        sound, picture = (
            None if regions is None else DeviceMemory(device.lane(), regions, track=track).opened()
            for regions, track in ((plan.sound, SOUND), (plan.picture, PICTURE))
        )
        return Card(
            memory=memory,
            plan=plan,
            keep_text=plan.keep_text,
            sound=sound,
            picture=picture,
            sizes=planned,
            refused=refused,
        )
    except BaseException:
        device.close()
        raise


def trust_of(runtime: RuntimeConfig) -> Trust:
    """What the user lets engines run."""
    return Trust(plugin_modules=runtime.plugin_modules, host_code=runtime.engine_host_code)


def _plan(
    bundle: Bundle,
    device: CudaDevice,
    trust: Trust,
    *,
    resident: bool,
    sizes: RequestSizes | None = None,
) -> MemoryPlan:
    manifest, needs, gpu = bundle.manifest, {}, device.gpu
    if sizes is not None:
        manifest = narrowed(manifest, sizes)
    there = manifest.components | manifest.device_graphs
    for name, entry in bundle.entries.items():
        if name.removesuffix(UNMASKED) not in there:
            continue
        path = bundle.folder / entry.engines[0].file
        info = read_info(path)
        check_version(info, str(load(info.backend).__version__), manifest.command())
        check_host_code(info, trust)
        check_plugins(info, manifest.command(), trust)
        check_gpu(info, gpu.target, gpu.name, manifest.command())
        given = (sizes or {}).get(name.removesuffix(UNMASKED), ())
        needs[name] = engine_needs(path, entry.spec(name), given)
    for name in manifest.components:
        if (unmasked := needs.pop(name + UNMASKED, None)) is not None:
            needs[name] = replace(needs[name], scratch=max(needs[name].scratch, unmasked.scratch))
    room = room_on(gpu.memory_bytes, device.free_bytes(), manifest)
    return plan_card_memory(manifest, needs, room, resident=resident, card=gpu.name)
