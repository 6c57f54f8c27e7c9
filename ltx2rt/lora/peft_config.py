"""The configuration that PEFT and diffusers keep with an adapter: beside it, or in its metadata.

It says what tensors do not: alphas, and how rotations are made. Meaning: PEFT 0.21.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ltx2rt.errors import CheckpointError
from ltx2rt.lora.tensor_names import spellings
from ltx2rt.user_files import read_limited
from ltx2rt.weights.safetensors import SafetensorsFile, read_metadata

_MAX_CONFIG_BYTES = 1 << 20
_KEY = "lora_adapter_metadata"
_WEIGHTS_NAME = "adapter_model.safetensors"
#: kinds of PEFT whose tensors say what they do, or are refused by their names
_KINDS = frozenset({"LORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3", "ADALORA", "VERA", "RANDLORA"})
#: how weights were begun -> whether the base was changed with them
_INITS = re.compile(r"(pissa|corda|olora|loftq|lora_ga)")
#: variants of LoRA under LoRA's tensor names
_VARIANTS = (
    "use_qalora", "use_bdlora", "arrow_config", "layer_replication", "alora_invocation_tokens",
    "monteclora_config", "kasa_config",
)  # fmt: skip
#: kinds that a configuration tells, as docs/files.md lists them
REFUSED = (
    "another kind of PEFT (peft_type)",
    "PiSSA, CorDA, OLoRA, LoftQ, LoRA-GA (init_lora_weights)",
    "variants of PEFT's LoRA (use_qalora, use_bdlora, ...)",
    "OFT of PEFT or AdaLoRA without its adapter_config.json",
    "OFT of PEFT before 0.18, made by a series",
)
#: patterns that take time beyond all measure: a repeated group, or many repetitions
_SLOW = re.compile(r"\)[*+{]|\\[1-9]|\(\?[^:]")
#: a pattern that is a name, or the end of one
_NAME = re.compile(r"(\^?)((?:[\w-]|\\?\.)+)\$?")
_MAX_PATTERN, _MAX_REPEATS = 300, 4


class PeftConfig:
    """The configurations of one file, by the component that they are for.

    Args:
        file: the adapter.
        peft: whether `adapter_config.json` beside the file belongs to it whatever its name is.

    Raises:
        CheckpointError: a configuration cannot be read.
    """

    def __init__(self, file: SafetensorsFile, *, peft: bool) -> None:
        self._path = file.path
        config = read_metadata(file, _KEY)
        if config is None and (peft or file.path.name == _WEIGHTS_NAME):
            config = self._beside(file.path.with_name("adapter_config.json"))
        elif config is not None and not isinstance(config, dict):
            raise CheckpointError(f"{file.path}: its metadata {_KEY} is not a JSON object.")
        self._parts: dict[str, dict[str, Any]] = {}
        self._patterns: dict[tuple[int, str], _Patterns] = {}
        for key, value in (config or {}).items():
            component, _, name = str(key).rpartition(".")
            self._parts.setdefault(component, {})[name] = value
        shared = self._parts.setdefault("", {})
        self._parts = {component: shared | own for component, own in self._parts.items()}

    def of(self, module: str) -> Mapping[str, Any]:
        """What holds for a module: keys that name its component (`transformer.lora_alpha`), else
        those of the transformer, over those that name none.
        """
        own = [p for p in self._parts if p and module.startswith(f"{p}.")]
        place = next((p for p in (*own, "transformer") if p in self._parts), "")
        return self._parts.get(place, {})

    def number(self, key: str, pattern_key: str, module: str) -> Any:
        """A number of a module: from the first pattern that its name matches, as PEFT does: a
        regular expression for the end of the name; else the number of all modules, or None.

        Raises:
            CheckpointError: a pattern is no expression, or one that could take for ever.
        """
        config = self.of(module)
        if not isinstance(config.get(pattern_key), dict):
            return config.get(key)
        place = id(config), pattern_key
        if place not in self._patterns:
            self._patterns[place] = _Patterns(config[pattern_key], f"{self._path}: {pattern_key}")
        return self._patterns[place].find(module, config.get(key))

    def refused(self, kinds: Iterable[str]) -> Iterator[str]:
        """Kinds that are not merged, for what a configuration says.

        Args:
            kinds: parts of updates that the file has (`oft_R`).
        """
        for config in self._parts.values():
            kind = config.get("peft_type", "LORA")
            if kind not in _KINDS:
                yield f"{kind} of PEFT"
            init = config.get("init_lora_weights")
            if isinstance(init, str) and _INITS.match(init.lower()):
                way = " (save it with path_initial_model_for_weight_conversion)"
                yield (
                    f"init_lora_weights={init}, which changed the base as well"
                    f"{way * (not init.lower().startswith('loftq'))}"
                )
            for variant in _VARIANTS:
                if config.get(variant):
                    yield f"{variant} of PEFT"
        kinds = frozenset(kinds)
        if "gains" in kinds and not self.of("transformer."):
            yield "AdaLoRA without its adapter_config.json, which says how strong it is,"
        if "oft_R" in kinds:
            yield from self._refused_rotations()

    def _refused_rotations(self) -> Iterator[str]:
        config = self.of("transformer.")
        if not config:
            yield "OFT of PEFT without its adapter_config.json, which says how to read it,"
        elif config.get("use_cayley_neumann", True):
            version = re.match(r"(\d+)\.(\d+)", str(config.get("peft_version", "")))
            if version is None or (int(version[1]), int(version[2])) < (0, 18):
                yield "OFT of PEFT before 0.18, whose series was another one,"

    def _beside(self, path: Path) -> dict[str, Any]:
        """What PEFT writes beside its weights, which holds alpha; nothing when it is not there.

        Raises:
            CheckpointError: it cannot be read.
        """
        if not path.exists():
            return {}
        try:
            config = json.loads(read_limited(path, _MAX_CONFIG_BYTES))
            problem = "" if isinstance(config, dict) else "it is not a JSON object"
        except (OSError, ValueError, RecursionError) as error:
            config, problem = {}, str(error)
        if problem:
            raise CheckpointError(
                f"{path} says how strong the LoRA beside it is, but it cannot be read ({problem}); "
                "mend it, or remove it to take alpha = rank."
            )
        # of one component: dots in its keys are no components
        return {key: value for key, value in config.items() if "." not in key}


class _Patterns:
    """Expressions for names of modules, in order; those that are names are looked up."""

    def __init__(self, patterns: Mapping[str, Any], where: str) -> None:
        self._values = list(patterns.values())
        self._names: dict[str, int] = {}
        self._expressions: list[tuple[int, re.Pattern[str]]] = []
        for index, pattern in enumerate(map(str, patterns)):
            if match := _NAME.fullmatch(pattern):
                self._names.setdefault(match[1] + match[2].replace("\\.", "."), index)
            else:
                self._expressions.append((index, _compiled(pattern, where)))

    def find(self, module: str, default: Any) -> Any:
        names = list(spellings(module))
        parts = module.split(".")
        ends = [".".join(parts[i:]) for i in range(len(parts))] + [f"^{name}" for name in names]
        found = {self._names[end] for end in ends if end in self._names}
        found |= {i for i, e in self._expressions if any(e.fullmatch(name) for name in names)}
        return self._values[min(found)] if found else default


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    repeats = len(re.findall(r"(?<!\\)[*+{]", pattern))
    if _SLOW.search(pattern) or repeats > _MAX_REPEATS or len(pattern) > _MAX_PATTERN:
        problem = "too complex"
    else:
        try:
            # `^` stands for the begin of the name, as in PEFT
            return re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, OverflowError, RecursionError) as error:
            problem = f"no expression ({error})"
    raise CheckpointError(f"{where} names {pattern[:80]!r}, which is {problem}.")
