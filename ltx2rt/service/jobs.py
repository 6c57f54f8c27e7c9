"""Jobs, kept in SQLite: what was asked, how far it is, how it ended. They survive a restart."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ltx2rt.errors import OptionError

State = Literal["queued", "in_progress", "completed", "failed"]
#: of the database; goes up where an old one cannot be read any more
JOBS_SCHEMA = 2
_JSON = ("order", "result", "asked")
_UNFINISHED = ("queued", "in_progress")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job.

    Attributes:
        id: names it everywhere.
        owner: who may see it.
        model: the name of the bundle that makes it.
        state: as clients know it.
        created, started, finished: seconds since 1970; 0: not yet.
        priority: 0 is ordinary, smaller goes first.
        timeout_s: seconds it may take from when it was accepted; 0: any.
        order: `Order.plain`.
        kind: what the clip will be, a key of `maker.FILES`.
        asked: what the client called things, for its answers.
        attempts: how often a worker began it.
        result: see `maker.Maker.make`; {} before it is completed.
        error_kind, error: why it failed.
    """

    id: str
    owner: str = ""
    model: str = ""
    state: State = "queued"
    created: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    priority: int = 0
    timeout_s: float = 0.0
    order: dict[str, Any] = field(default_factory=dict)
    kind: str = "video"
    asked: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0
    result: dict[str, Any] = field(default_factory=dict)
    error_kind: str = ""
    error: str = ""

    @property
    def is_finished(self) -> bool:
        return self.state not in _UNFINISHED


_COLUMNS = [f.name for f in fields(JobRow)]
# `order` is a word of SQL
_NAMES = ", ".join(f'"{name}"' for name in _COLUMNS)


class JobStore:
    """The jobs of one service; any thread may call it.

    Args:
        path: of the database; made if it is missing.

    Raises:
        OptionError: it is not a database of ours, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, 1, JOBS_SCHEMA):
                raise OptionError(
                    f"{path} has schema {found}; this version reads {JOBS_SCHEMA}: name another "
                    "data folder."
                )
            self._db.execute(
                f"CREATE TABLE IF NOT EXISTS jobs ({_NAMES}, PRIMARY KEY (id)) WITHOUT ROWID"
            )
            if found == 1:  # of versions that had one bundle a server
                self._db.execute("ALTER TABLE jobs ADD COLUMN model DEFAULT ''")
            self._db.execute("CREATE INDEX IF NOT EXISTS by_time ON jobs (created, id)")
            self._db.execute(f"PRAGMA user_version = {JOBS_SCHEMA}")
        except sqlite3.DatabaseError as error:
            raise OptionError(f"{path} is not a database of jobs: {error}.") from error

    def close(self) -> None:
        """No more calls after this."""
        with self._lock:
            self._db.close()

    def put(self, job: JobRow) -> None:
        """Add a job, or write it anew."""
        values = [getattr(job, name) for name in _COLUMNS]
        texts = [
            json.dumps(v, ensure_ascii=False) if n in _JSON else v
            for n, v in zip(_COLUMNS, values, strict=True)
        ]
        marks = ", ".join("?" * len(_COLUMNS))
        with self._run(f"INSERT OR REPLACE INTO jobs ({_NAMES}) VALUES ({marks})", *texts):
            pass

    def get(self, job: str) -> JobRow | None:
        """A job, or None."""
        with self._run(f"SELECT {_NAMES} FROM jobs WHERE id = ?", job) as cursor:
            row = cursor.fetchone()
        return None if row is None else _job(row)

    def remove(self, job: str) -> None:
        """Forget a job."""
        with self._run("DELETE FROM jobs WHERE id = ?", job):
            pass

    def page(
        self, owner: str, after: JobRow | None, limit: int, *, newest_first: bool
    ) -> list[JobRow]:
        """Some of an owner's jobs, in the order of their creation."""
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        where = "owner = ?"
        values: tuple[Any, ...] = (owner,)
        if after is not None:
            where += f" AND (created, id) {sign} (?, ?)"
            values = (owner, after.created, after.id)
        statement = (
            f"SELECT {_NAMES} FROM jobs WHERE {where} ORDER BY created {order}, id {order} LIMIT ?"
        )
        with self._run(statement, *values, limit) as cursor:
            return [_job(row) for row in cursor.fetchall()]

    def unfinished(self) -> list[JobRow]:
        """Jobs that are queued or were being made, the oldest first."""
        statement = f"SELECT {_NAMES} FROM jobs WHERE state IN (?, ?) ORDER BY created, id"
        with self._run(statement, *_UNFINISHED) as cursor:
            return [_job(row) for row in cursor.fetchall()]

    def finished(self) -> list[tuple[str, float]]:
        """Ids of the jobs that ended, and when, the oldest first."""
        statement = "SELECT id, finished FROM jobs WHERE state NOT IN (?, ?) ORDER BY finished, id"
        with self._run(statement, *_UNFINISHED) as cursor:
            return [(str(job), float(when)) for job, when in cursor.fetchall()]

    @contextmanager
    def _run(self, statement: str, *values: Any) -> Iterator[sqlite3.Cursor]:
        with self._lock, closing(self._db.execute(statement, values)) as cursor:
            yield cursor


def _job(row: tuple[Any, ...]) -> JobRow:
    data = dict(zip(_COLUMNS, row, strict=True))
    return JobRow(**{n: json.loads(v) if n in _JSON else v for n, v in data.items()})
