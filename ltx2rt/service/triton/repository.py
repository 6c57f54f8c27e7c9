"""Write a model repository: configurations for GPU and CPU, models, Dockerfile, README."""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path

from ltx2rt import __version__
from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.partial import Partial

GENERATE, TEXT, CLIP, HEALTH = "ltx2_generate", "ltx2_text_encode", "ltx2_clip", "ltx2_health"
#: prompts that are encoded at once
TEXT_BATCH = 8
#: the model of a repository -> the module of this folder that it runs
_MODULES = {GENERATE: "model", TEXT: "text_model", HEALTH: "canary"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryConfig:
    """What a repository is made for.

    Attributes:
        bundle: where the server finds it.
        instances: a GPU; each holds its own weights.
        gpus: numbers; empty: all.
        text_gpus: those of the text encoder's own model; empty: as `gpus`.
        has_text: whether the bundle holds a text encoder, so that there is such a model.
        threads: CPU threads per engine; 0 uses every core.
        max_queue: requests that may wait, a priority.
        timeout_s: seconds that a request may wait; 0: any.
        media_dir, lora_dir: folders whose files requests may name.
        weights_dir: where weight files are, if they moved.
        warm_up: width, height and frames of a clip that is made when a model is loaded.
        environment: of the models' Python, a folder or an archive, where it is not the one that
            `PATH` names.
    """

    bundle: Path
    instances: int = 1
    gpus: tuple[int, ...] = ()
    text_gpus: tuple[int, ...] = ()
    has_text: bool = True
    threads: int = 0
    max_queue: int = 100
    timeout_s: float = 0.0
    media_dir: Path | None = None
    lora_dir: Path | None = None
    weights_dir: Path | None = None
    warm_up: tuple[int, int, int] | None = None
    environment: Path | None = None

    def __post_init__(self) -> None:
        problems = [
            Problem(Field(name), f"={getattr(self, name)} is less than {least}")
            for name, least in (
                ("instances", 1),
                ("threads", 0),
                ("max_queue", 1),
                ("timeout_s", 0),
            )
            if getattr(self, name) < least
        ]
        for name in ("gpus", "text_gpus"):
            gpus = getattr(self, name)
            if any(g < 0 for g in gpus) or len(set(gpus)) < len(gpus):
                problems.append(Problem(Field(name), f"={gpus} are not numbers of GPUs"))
        if problems:
            raise OptionError("a model repository", problems)


def write_repository(folder: Path, config: RepositoryConfig) -> list[str]:
    """Write the repository; it appears whole or not at all.

    Returns:
        The files, relative to it.

    Raises:
        OptionError: the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"{folder} exists and is not an empty folder: name another one.")
    said = _parameters(
        bundle=config.bundle.absolute(),
        threads=config.threads,
        media_dir=config.media_dir and config.media_dir.absolute(),
        lora_dir=config.lora_dir and config.lora_dir.absolute(),
        weights_dir=config.weights_dir and config.weights_dir.absolute(),
        warm_up=_warm_up(config.warm_up),
        EXECUTION_ENV_PATH=config.environment and config.environment.absolute(),
    )
    own = _parameters(EXECUTION_ENV_PATH=config.environment and config.environment.absolute())
    files = {
        "Dockerfile": _file("Dockerfile", VERSION=__version__),
        "README.md": _file("README.md", BUNDLE=config.bundle.absolute()),
    }
    for name, module in _MODULES.items():
        files[f"models/{name}/1/model.py"] = _file("model.txt", MODULE=module)
    gpus = config.text_gpus or config.gpus
    for place, kind in (("config.pbtxt", _on_gpus), ("configs/cpu.pbtxt", _on_cpu)):
        files |= {
            f"models/{GENERATE}/{place}": _file(
                "generate.pbtxt", INSTANCES=kind(config.instances, config.gpus),
                LIMITS=_limits(config), PARAMETERS=said,
            ),
            f"models/{TEXT}/{place}": _file(
                "text.pbtxt", INSTANCES=kind(1, gpus), BATCH=TEXT_BATCH,
                LIMITS=_limits(config, TEXT_BATCH), PARAMETERS=said
            ),
            f"models/{CLIP}/{place}": _file("clip.pbtxt"),
            f"models/{HEALTH}/{place}": _file("health.pbtxt", PARAMETERS=own),
        }  # fmt: skip
    left_out = () if config.has_text else (f"models/{TEXT}/", f"models/{CLIP}/")
    files = {name: text for name, text in files.items() if not name.startswith(left_out)}
    folders = [] if not config.has_text else [f"models/{CLIP}/1"]  # Triton wants a version
    with Partial(folder.absolute(), folder=True) as part:
        for name, text in files.items():
            (part.path / name).parent.mkdir(parents=True, exist_ok=True)
            (part.path / name).write_text(text, encoding="utf-8")
        for name in folders:
            (part.path / name).mkdir()
    return sorted(files)


def _on_gpus(count: int, gpus: tuple[int, ...]) -> str:
    named = f" gpus: [ {', '.join(map(str, gpus))} ]" if gpus else ""
    return f"count: {count} kind: KIND_GPU{named}"


def _on_cpu(count: int, gpus: tuple[int, ...]) -> str:
    return f"count: {count} kind: KIND_CPU"


def _parameters(**said: object) -> str:
    """What models are told, besides what Triton itself reads; None is left out."""
    return "\n".join(
        f'parameters {{ key: "{name}" value {{ string_value: {json.dumps(str(value))} }} }}'
        for name, value in said.items()
        if value is not None
    )


def _limits(config: RepositoryConfig, batch: int = 1) -> str:
    """Of a queue, of which `batch` requests are taken at once."""
    limits = f"max_queue_size: {config.max_queue * batch}"
    if timeout := round(config.timeout_s * 1e6):
        limits += (
            f" default_timeout_microseconds: {timeout} timeout_action: REJECT "
            "allow_timeout_override: true"
        )
    return limits


def _warm_up(size: tuple[int, int, int] | None) -> str | None:
    """The request of a clip of this width, height and number of frames."""
    if size is None:
        return None
    sizes = dict(zip(("width", "height", "num_frames"), size, strict=True))
    return json.dumps({"config": {"prompt": "warm up", **sizes}})


def _file(name: str, **values: object) -> str:
    """A file of this package, with `@NAME@` replaced."""
    folder = importlib.resources.files("ltx2rt.service.triton").joinpath("files")
    text = folder.joinpath(name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text
