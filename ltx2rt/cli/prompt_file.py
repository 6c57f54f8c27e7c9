"""Prompt files of kohya's and musubi-tuner's trainers as jobs: a prompt a line, then its options;
or TOML and JSON of the same.

A bell rings --n blurry --w 768 --h 512 --f 121 --fr 25 --d 42 --s 30 --g 4
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx2rt.errors import OptionError
from ltx2rt.plain_data import parse_json

#: files of this suffix are prompt files
SUFFIX = ".txt"
COMMENT = "#"

#: option -> keys of a job that get its value. The trainers know one scale of guidance, for picture
#: and sound; `g` is its older name.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "n": ("negative_prompt",),
    "w": ("width",),
    "h": ("height",),
    "f": ("num_frames",),
    "fr": ("frame_rate",),
    "d": ("seed",),
    "s": ("num_inference_steps",),
    "g": ("video_cfg_guidance_scale", "audio_cfg_guidance_scale"),
    "l": ("video_cfg_guidance_scale", "audio_cfg_guidance_scale"),
    "i": ("image",),
    "v": ("reference",),
    "ra": ("reference_audio",),
}
#: the same in TOML and JSON, whose other names are those of a job; `subset` holds the entries
KEYS: Mapping[str, tuple[str, ...]] = {
    "frame_count": OPTIONS["f"],
    "sample_steps": OPTIONS["s"],
    "guidance_scale": OPTIONS["g"],
    "cfg_scale": OPTIONS["l"],
    "scale": OPTIONS["g"],
    "image_path": OPTIONS["i"],
}
#: those that hold numbers, and of these the whole ones
_WHOLE = frozenset("whfds")
_NUMBERS = _WHOLE | {"fr", "g", "l"}


def job_of_line(line: str) -> dict[str, Any]:
    """A line as the object that a job is.

    Raises:
        OptionError: no prompt, an option that is not known, given twice or without its value; all
            problems are listed.
    """
    prompt, *options = re.split(r"(?:^|\s)--(?=[A-Za-z])", line.strip())
    job: dict[str, Any] = {"prompt": prompt.strip()}
    problems = [] if job["prompt"] else ["it does not begin with a prompt"]
    for option in options:
        name, _, value = option.strip().partition(" ")
        name, value = name.lower(), value.strip()
        keys = OPTIONS.get(name, ())
        if not keys:
            known = " ".join(f"--{known}" for known in OPTIONS)
            problems.append(f"--{name} is not known; a line takes {known}")
        elif keys[0] in job:
            problems.append(f"--{name} is given twice")
        elif not value:
            problems.append(f"--{name} has no value")
        else:
            try:
                job |= dict.fromkeys(keys, _read(name, value))
            except ValueError:
                problems.append(f"--{name} {value!r:.40} is not a number")
    if problems:
        raise OptionError("the line is no prompt with options", problems)
    return job


def entries_of(path: Path, text: str) -> list[Any] | None:
    """The entries of a TOML or JSON file of prompts; None for a file of lines.

    Raises:
        OptionError: it is TOML, and not one of prompts.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        try:
            found = parse_json(text)
        except ValueError:
            return None  # a job a line, whatever the file is called
        return found if isinstance(found, list) else None
    if suffix != ".toml":
        return None
    try:
        found = tomllib.loads(text).get("prompt")
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is not TOML: {error!s:.80}.") from error
    shared: dict[str, Any] = found if isinstance(found, dict) else {}
    subset = shared.get("subset")
    if not isinstance(subset, list) or not all(isinstance(entry, dict) for entry in subset):
        raise OptionError(
            f"{path} holds no prompts as trainers have them: a table [prompt] for all, and one "
            "[[prompt.subset]] for each."
        )
    usual = {key: value for key, value in shared.items() if key != "subset"}
    return [{**usual, **entry} for entry in subset]


def job_of_entry(entry: Any) -> Any:
    """An entry of TOML or JSON as the object that a job is; what is none is returned as it is.

    Raises:
        OptionError: see `job_of_line`; or an option is given under two names.
    """
    if isinstance(entry, str):
        return job_of_line(entry)
    if not isinstance(entry, dict):
        return entry
    job: dict[str, Any] = {}
    for name, value in entry.items():
        for key in KEYS.get(name, (name,)):
            if key in job:
                raise OptionError(f"{key} is given twice, once as {name}")
            job[key] = value
    return job


def _read(name: str, value: str) -> Any:
    if name not in _NUMBERS:
        return value
    return int(value) if name in _WHOLE else float(value)
