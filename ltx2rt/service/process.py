"""The parent's side of a worker process: start it, talk to it, say how it ended."""

from __future__ import annotations

import json
import logging
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx2rt.config import RuntimeConfig
from ltx2rt.plain_data import to_plain

logger = logging.getLogger(__name__)
_TAIL = 20  # lines of a worker's stderr that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What a worker is started with.

    Attributes:
        bundle: the folder.
        weights_dir: where weight files are now, if they moved.
        runtime: which device, and how.
    """

    bundle: Path
    runtime: RuntimeConfig
    weights_dir: Path | None = None


class WorkerProcess:
    """A running worker. The thread that makes it must live as long as it does.

    Args:
        setup: what it is started with.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ltx2rt.service.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._lock = threading.Lock()
        self._pong = threading.Condition()
        self._pongs = 0
        self._pings = 0
        self.is_ready = False
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read_errors, name="worker-log", daemon=True)
        self._reader.start()
        threading.Thread(target=self._read, name="worker-lines", daemon=True).start()
        self._send(to_plain(setup))

    @property
    def pid(self) -> int:
        return self._process.pid

    def _send(self, message: dict[str, Any]) -> None:
        """A worker that is gone is noticed by whoever reads its lines."""
        with self._lock:
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
            except (BrokenPipeError, ValueError):
                logger.debug("worker %d takes no more messages", self.pid)

    def make(self, message: dict[str, Any]) -> None:
        """Have it make a clip: `id`, `order`, `folder`, `work_dir`."""
        self._send({"make": message})

    def ahead(self, order: dict[str, Any]) -> None:
        """Say what the next clip will be."""
        self._send({"ahead": order})

    def cancel(self, job: str) -> None:
        """End a clip at its next step or tile."""
        self._send({"cancel": job})

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it says, until it ends."""
        while (message := self._messages.get()) is not None:
            yield message

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "pong" in message:
                with self._pong:
                    self._pongs = max(self._pongs, message["pong"])
                    self._pong.notify_all()
            else:
                self.is_ready = self.is_ready or "ready" in message
                self._messages.put(message)
        self._messages.put(None)

    def answers(self, timeout_s: float) -> bool:
        """Whether it is ready and answers in time, be it in the midst of a clip."""
        if not self.is_ready or self.is_gone:
            return False
        with self._pong:
            self._pings += 1
            number = self._pings
        self._send({"ping": number})
        with self._pong:
            return self._pong.wait_for(lambda: self._pongs >= number, timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Have it end after its clip, which is cancelled; it is killed if that takes too long."""
        with self._lock:
            assert self._process.stdin is not None
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                logger.debug("worker %d was gone", self.pid)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    @property
    def is_gone(self) -> bool:
        """Whether it ended."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def ended(self) -> str:
        """How it ended, for a message; waits for that."""
        status = self._process.wait()
        self._reader.join(1)
        last = self._tail[-1] if self._tail else "it said nothing"
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return f"{how}: {last}"

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if text := line.rstrip():
                self._tail.append(text)
                logger.info("worker %d: %s", self.pid, text)
