"""Whether a file was made by this same request: then it need not be made again."""

from __future__ import annotations

from pathlib import Path

from ltx2rt.errors import CheckpointError, MediaError, OptionError
from ltx2rt.pipelines.checkpointing import request_key
from ltx2rt.pipelines.record import Record
from ltx2rt.pipelines.record_files import record_in
from ltx2rt.plain_data import named_files


def is_made(path: Path, record: Record) -> bool:
    """Whether a file holds the record of this request and is newer than every file that the request
    names. One whose duration was automatic does not count: it holds the duration that was found.
    """
    try:
        same = request_key(record_in(path)) == request_key(record)
    except (OptionError, MediaError, CheckpointError):  # it is absent, damaged, or not ours
        return False
    made = path.stat().st_mtime_ns
    sources = [source for source in named_files(record.request) if source.exists()]
    return same and all(source.stat().st_mtime_ns < made for source in sources)
