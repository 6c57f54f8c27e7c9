"""What stands for ComfyUI, after what its `execution.py`, `nodes.py`, `folder_paths.py` and its
progress bar did on 2026-12-01: how a folder of `custom_nodes` is imported, how a prompt is checked,
in what its nodes run, and what is kept for the next prompt.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

#: what a value of a prompt becomes
WIDGETS: dict[str, Callable[[Any], Any]] = {
    "STRING": str, "INT": int, "FLOAT": float, "BOOLEAN": bool,
}  # fmt: skip
Prompt = Mapping[str, Mapping[str, Any]]


class InterruptProcessingException(Exception):
    """What ComfyUI raises after its stop button."""


class Host:
    """The modules that a node pack imports.

    Attributes:
        bars: (value, total) of every bar, in their order.
        stop_after: updates of bars, after which somebody presses the stop button.
    """

    def __init__(self, output: Path, loras: Path) -> None:
        self.bars: list[list[tuple[int, int]]] = []
        self.stop_after = 10**6
        host = self

        class ProgressBar:
            def __init__(self, total: int, node_id: str | None = None) -> None:
                self.total, self.current = total, 0
                self.seen: list[tuple[int, int]] = []
                host.bars.append(self.seen)

            def update_absolute(
                self, value: int, total: int | None = None, preview: Any = None
            ) -> None:
                self.total = self.total if total is None else total
                self.current = min(value, self.total)
                self.seen.append((self.current, self.total))
                interrupted()  # the hook of its bar does so

        def interrupted() -> None:
            if sum(map(len, host.bars)) >= host.stop_after:
                raise InterruptProcessingException

        def place(
            prefix: str, folder: str, image_width: int = 0, image_height: int = 0
        ) -> tuple[str, str, int, str, str]:
            prefix = prefix.replace("%width%", f"{image_width}")
            prefix = prefix.replace("%height%", f"{image_height}")
            inside, stem = str(Path(prefix).parent), Path(prefix).name
            full = Path(folder) / inside
            full.mkdir(parents=True, exist_ok=True)
            counter = 1 + max(
                (int(p.name.removeprefix(f"{stem}_").partition("_")[0]) for p in full.iterdir()),
                default=0,
            )
            return str(full), stem, counter, inside.removeprefix("."), prefix

        self.modules = {
            "comfy": {},
            "comfy.utils": {"ProgressBar": ProgressBar},
            "comfy.model_management": {
                "throw_exception_if_processing_interrupted": interrupted,
                "InterruptProcessingException": InterruptProcessingException,
            },
            "folder_paths": {
                "get_filename_list": lambda kind: sorted(p.name for p in loras.iterdir()),
                "get_full_path": lambda kind, name: str(loras / name),
                "get_output_directory": lambda: str(output),
                "get_save_image_path": place,
            },
        }

    @contextmanager
    def nodes(self, folder: Path) -> Iterator[dict[str, Any]]:
        """Inside, the classes of a folder of `custom_nodes`; its module is named after it."""
        name = str(folder).replace(".", "_x_")
        before = {*sys.modules}
        for module, names in self.modules.items():
            made = ModuleType(module)
            vars(made).update(names)
            sys.modules[module] = made
            if "." in module:
                setattr(sys.modules["comfy"], module.partition(".")[2], made)
        try:
            spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
            assert spec is not None
            assert spec.loader is not None
            pack = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(pack)
            assert pack.NODE_CLASS_MAPPINGS.keys() == pack.NODE_DISPLAY_NAME_MAPPINGS.keys()
            yield pack.NODE_CLASS_MAPPINGS
        finally:
            for added in {*sys.modules} - before:
                if added in self.modules or added.startswith(name):
                    del sys.modules[added]


def is_link(value: Any) -> bool:
    """Whether a value of a prompt is another node's output: its id, and which."""
    return isinstance(value, list) and len(value) == 2


class Executor:
    """Runs prompts, as `POST /prompt` takes them; keeps what nodes gave for the next one.

    Attributes:
        ran: classes of nodes in the order in which they ran, of the last prompt.
    """

    def __init__(self, nodes: Mapping[str, Any]) -> None:
        self._nodes = nodes
        self._kept: dict[str, tuple[str, tuple[Any, ...]]] = {}
        self.ran: list[str] = []

    def problems(self, prompt: Prompt) -> list[str]:
        """Why ComfyUI would not take it."""
        return [f"{node}: {p}" for node in prompt for p in self._problems(prompt, node)]

    def _problems(self, prompt: Prompt, node: str) -> Iterator[str]:
        kind, given = self._nodes[prompt[node]["class_type"]], prompt[node]["inputs"]
        types = kind.INPUT_TYPES()
        check = getattr(kind, "VALIDATE_INPUTS", None)
        checked = inspect.getfullargspec(check).args if check else []
        for name in types.get("required", {}).keys() - given.keys():
            yield f"{name} is missing"
        for name, (what, *rest) in {**types["required"], **types.get("optional", {})}.items():
            value, facts = given.get(name), rest[0] if rest else {}
            if name not in given:
                continue
            if is_link(value):
                source = self._nodes[prompt[value[0]]["class_type"]]
                if source.RETURN_TYPES[value[1]] != what:
                    yield f"{name}: {source.RETURN_TYPES[value[1]]} is no {what}"
            elif isinstance(what, list):
                if name not in checked and value not in what:
                    yield f"{name}: {value} is not in the list"
            elif name not in checked:
                number = WIDGETS[what](value)
                if number < facts.get("min", number) or number > facts.get("max", number):
                    yield f"{name}: {value} is too small or too large"
        if check:
            values = {n: None if is_link(v) else v for n, v in given.items() if n in checked}
            if (said := check(**values)) is not True:
                yield str(said)

    def run(self, prompt: Prompt, *outputs: str) -> list[Any]:
        """What these nodes give, on a thread, in its event loop, in inference mode."""
        assert not self.problems(prompt)
        found: list[Any] = []
        self.ran = []

        async def work() -> None:
            with torch.inference_mode():
                found.extend([self._output(prompt, node) for node in outputs])

        def on_thread() -> None:
            try:
                asyncio.run(work())
            except BaseException as error:  # handed to the thread that waits
                found.append(error)

        thread = threading.Thread(target=on_thread)
        thread.start()
        thread.join()
        if found and isinstance(found[-1], BaseException):
            raise found[-1]
        return found

    def _output(self, prompt: Prompt, node: str) -> Any:
        kind = self._nodes[prompt[node]["class_type"]]
        signature = self._signature(prompt, node)
        kept = self._kept.get(node)
        if kept is not None and kept[0] == signature:
            return kept[1]
        values = {
            name: self._output(prompt, value[0])[value[1]] if is_link(value) else value
            for name, value in prompt[node]["inputs"].items()
        }
        self.ran.append(prompt[node]["class_type"])
        result = getattr(kind(), kind.FUNCTION)(**values)
        if isinstance(result, dict):  # an output node, which shows something
            assert all(isinstance(shown, list | tuple) for shown in result["ui"].values())
            json.dumps(result["ui"])
        else:
            assert isinstance(result, tuple)
            assert len(result) == len(kind.RETURN_TYPES)
        self._kept[node] = signature, result
        return result

    def _signature(self, prompt: Prompt, node: str) -> str:
        """Equal for equal inputs, all the way up; `IS_CHANGED` sees constants alone."""
        kind, given = self._nodes[prompt[node]["class_type"]], prompt[node]["inputs"]
        changed = None
        if hasattr(kind, "IS_CHANGED"):
            changed = kind.IS_CHANGED(**{n: None if is_link(v) else v for n, v in given.items()})
        inputs = {n: self._signature(prompt, v[0]) if is_link(v) else v for n, v in given.items()}
        return json.dumps([prompt[node]["class_type"], changed, inputs])
