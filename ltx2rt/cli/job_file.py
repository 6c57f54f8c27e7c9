"""Job files: the flags of `ltx2rt generate` in a JSON or TOML file, or in a file that ltx2rt made.

A job's keys are the flags' names, with underscores or dashes; paths in it are relative to the
file. `variables` is a table whose values replace `${NAME}` in the job's texts. `record` (JSON only)
holds a whole request as media files carry it; flags change parts of it.
"""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltx2rt.cli.fields import all_flags
from ltx2rt.cli.flags import key_of
from ltx2rt.cli.outputs import real_path
from ltx2rt.errors import OptionError
from ltx2rt.media.files import writing
from ltx2rt.partial import Partial
from ltx2rt.plain_data import parse_json, unknown_name
from ltx2rt.results.record import RECORD_SUFFIXES, Record, plain_record, read_record, record_in
from ltx2rt.user_files import read_user_file

MAX_JOB_BYTES = 16_000_000
#: TOML with long dotted keys takes quadratic time and memory to read
MAX_TOML_BYTES = 64_000
RECORD_KEY = "record"
#: what lets others' code run, or widens where things go, is said on the command line alone
COMMAND_LINE_ONLY = frozenset({"plugin_modules", "engine_host_code", "enhance_insecure"})
#: what a job writes
WRITTEN = (
    "output",
    "frames",
    "audio_output",
    "save_latents",
    "save_embeddings",
    "work_dir",
    "trace",
    "preview",
)
VARIABLES_KEY = "variables"


def read_job(
    path: Path, variables: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], Record | None]:
    """What the flags hold in a job file, and its record.

    Args:
        variables: further variables of the job, which win over its own.

    Raises:
        OptionError: lists everything that is wrong in the file.
    """
    if path.suffix.lower() in RECORD_SUFFIXES:
        return {}, record_in(path)
    job = read_table(path)
    if variables:
        own = job.get(VARIABLES_KEY, {})
        job[VARIABLES_KEY] = {**own, **variables} if isinstance(own, dict) else own
    return read_flags(job, path.absolute().parent, str(path))


def read_flags(
    job: Mapping[str, Any], folder: Path, where: str
) -> tuple[dict[str, Any], Record | None]:
    """As `read_job`, for a job that was read.

    Args:
        folder: what paths in the job are relative to.
        where: names the job in messages.
    """
    job, problems = with_variables(job)
    known = {key_of(n): f for f in all_flags().values() for n in f.names if n.startswith("--")}
    given: dict[str, Any] = {}
    record = None
    for name, value in job.items():
        key = key_of(name)
        try:
            if key == RECORD_KEY:
                record = read_record(value, where, folder)
            elif key in COMMAND_LINE_ONLY:
                problems.append(f"{key} is for the command line alone, not for a job")
            elif key not in known:
                problems.append(unknown_name(name, [*known, RECORD_KEY]))
            else:
                given[known[key].key] = known[key].of_job(value, folder)
        except OptionError as error:
            problems += [f"{key}: {problem}" for problem in error.problems]
        except (ValueError, argparse.ArgumentTypeError) as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise OptionError(f"{where} cannot be used as a job", problems)
    return {key: value for key, value in given.items() if value is not None}, record


def with_variables(job: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A job without its table `variables`, their values in place of `${NAME}` in every text of it;
    and what is wrong with them. A job without variables stays as it is.
    """
    job = dict(job)
    variables = job.pop(VARIABLES_KEY, None)
    if variables is None:
        return job, []
    if not isinstance(variables, dict) or not all(
        isinstance(v, str | int | float) and not isinstance(v, bool) for v in variables.values()
    ):
        return job, [f"{VARIABLES_KEY} is not a table of texts and numbers"]
    problems: list[str] = []

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name not in variables:
            problems.append(f"variable {unknown_name(name, variables)}")
        return str(variables.get(name, ""))

    def filled(value: Any) -> Any:
        if isinstance(value, str):
            return re.sub(r"\$\{([^{}]*)\}", value_of, value)
        if isinstance(value, list):
            return [filled(item) for item in value]
        return value

    found = {key: value if key == RECORD_KEY else filled(value) for key, value in job.items()}
    return found, problems


def read_table(path: Path) -> dict[str, Any]:
    """The table in a JSON or TOML file.

    Raises:
        OptionError: it cannot be read, is not JSON or TOML, or holds no table.
    """
    kind = path.suffix.lower()
    if kind not in (".json", ".toml"):
        raise OptionError(
            f"{path} is not a job: name a .json or .toml file, or a file that ltx2rt made "
            f"({', '.join(RECORD_SUFFIXES)})."
        )
    data = read_user_file(path, MAX_TOML_BYTES if kind == ".toml" else MAX_JOB_BYTES)
    try:
        text = data.decode("utf-8")
        job = tomllib.loads(text) if kind == ".toml" else parse_json(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is not {kind[1:].upper()}: {error}.") from error
    if not isinstance(job, dict):
        raise OptionError(f"{path} holds no table of flags.")
    return job


def dump_job(path: Path, given: Mapping[str, Any], record: Record | None) -> None:
    """Write what the flags hold as a job; paths become absolute."""
    job: dict[str, Any] = {} if record is None else {RECORD_KEY: plain_record(record)}
    job |= {
        key: all_flags()[key].absolute(value)
        for key, value in given.items()
        if key not in COMMAND_LINE_ONLY
    }
    with writing(path), Partial(path) as part:
        part.file.write(json.dumps(job, indent=2).encode() + b"\n")


def check_targets(job: Mapping[str, Any], typed: Mapping[str, Any], folder: Path) -> None:
    """Refuse a job that would replace files outside the folder of its output, or, where it names
    none, of the job itself. What is typed on the command line may.

    Args:
        job: what a job file holds.
        typed: what the command line holds.
        folder: where the job file lies.

    Raises:
        OptionError: names the files.
    """
    named = typed.get("output") or job.get("output")
    inside = real_path(folder if named in (None, "-") else Path(named).absolute().parent)
    targets = [Path(job[key]) for key in WRITTEN if key in job and key not in typed]
    replaced = [
        f"it would replace '{path}', which is not beside its output; name it on the command line"
        for path in targets
        if path.exists() and not path.is_dir() and not real_path(path).is_relative_to(inside)
    ]
    if replaced:
        raise OptionError("the job cannot be used", replaced)
