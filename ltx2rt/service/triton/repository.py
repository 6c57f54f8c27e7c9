"""Write a model repository: configurations for GPU and CPU, models, Dockerfile, README."""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from pathlib import Path

from ltx2rt import __version__
from ltx2rt.errors import Field, OptionError, Problem
from ltx2rt.partial import Partial

GENERATE, HEALTH = "ltx2_generate", "ltx2_health"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryConfig:
    """What a repository is made for.

    Attributes:
        bundle: where the server finds it.
        instances: a GPU; each holds its own weights.
        gpus: numbers; empty: all.
        threads: CPU threads per engine; 0 uses every core.
        max_queue: requests that may wait, a priority.
        timeout_s: seconds that a request may wait; 0: any.
        media_dir, lora_dir: folders whose files requests may name.
        weights_dir: where weight files are, if they moved.
    """

    bundle: Path
    instances: int = 1
    gpus: tuple[int, ...] = ()
    threads: int = 0
    max_queue: int = 100
    timeout_s: float = 0.0
    media_dir: Path | None = None
    lora_dir: Path | None = None
    weights_dir: Path | None = None

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
        if any(g < 0 for g in self.gpus) or len(set(self.gpus)) < len(self.gpus):
            problems.append(Problem(Field("gpus"), f"={self.gpus} are not numbers of GPUs"))
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
    gpus = f" gpus: [ {', '.join(map(str, config.gpus))} ]" if config.gpus else ""
    kinds = {"gpu": f"count: {config.instances} kind: KIND_GPU{gpus}"}
    kinds["cpu"] = f"count: {config.instances} kind: KIND_CPU"
    files = {
        f"models/{GENERATE}/config.pbtxt": _generate(config, kinds["gpu"]),
        f"models/{GENERATE}/configs/cpu.pbtxt": _generate(config, kinds["cpu"]),
        f"models/{GENERATE}/1/model.py": _file("model.txt", MODULE="model"),
        f"models/{HEALTH}/config.pbtxt": _file("health.pbtxt"),
        f"models/{HEALTH}/configs/cpu.pbtxt": _file("health.pbtxt"),
        f"models/{HEALTH}/1/model.py": _file("model.txt", MODULE="canary"),
        "Dockerfile": _file("Dockerfile", VERSION=__version__),
        "README.md": _file("README.md", BUNDLE=config.bundle.absolute()),
    }
    with Partial(folder.absolute(), folder=True) as part:
        for name, text in files.items():
            (part.path / name).parent.mkdir(parents=True, exist_ok=True)
            (part.path / name).write_text(text, encoding="utf-8")
    return sorted(files)


def _generate(config: RepositoryConfig, instances: str) -> str:
    said = {
        "bundle": config.bundle.absolute(),
        "threads": config.threads,
        "media_dir": config.media_dir and config.media_dir.absolute(),
        "lora_dir": config.lora_dir and config.lora_dir.absolute(),
        "weights_dir": config.weights_dir and config.weights_dir.absolute(),
    }
    parameters = "\n".join(
        f'parameters {{ key: "{name}" value {{ string_value: {json.dumps(str(value))} }} }}'
        for name, value in said.items()
        if value is not None
    )
    timeout = round(config.timeout_s * 1e6)
    limits = f"max_queue_size: {config.max_queue}"
    if timeout:
        limits += (
            f" default_timeout_microseconds: {timeout} timeout_action: REJECT "
            "allow_timeout_override: true"
        )
    return _file("generate.pbtxt", INSTANCES=instances, LIMITS=limits, PARAMETERS=parameters)


def _file(name: str, **values: object) -> str:
    """A file of this package, with `@NAME@` replaced."""
    folder = importlib.resources.files("ltx2rt.service.triton").joinpath("files")
    text = folder.joinpath(name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text
