"""Prompt files of kohya's and musubi-tuner's trainers as jobs: a prompt a line, then its options.

A bell rings --n blurry --w 768 --h 512 --f 121 --fr 25 --d 42 --s 30 --g 4
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ltx2rt.errors import OptionError

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


def _read(name: str, value: str) -> Any:
    if name not in _NUMBERS:
        return value
    return int(value) if name in _WHOLE else float(value)
