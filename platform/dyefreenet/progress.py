"""One quiet line per step of a run: how far, how fast, how long still."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field


@dataclass
class Line:
    """When a step began, and when it was last told."""

    began: float = field(default_factory=time.monotonic)
    printed: float = 0.0
    text: str = ""  # how far it was when that was last known, printed or not


class Progress:
    """Prints each step's line at most every ``every`` seconds, and when it ends. Thread-safe."""

    def __init__(self, every: float = 10.0) -> None:
        self.every = every
        self._lines: dict[tuple[str, str], Line] = {}  # by step and unit
        self._lock = threading.Lock()

    def say(self, step: str, text: str) -> None:
        with self._lock:
            print(f"{step:<16} {text}", file=sys.stderr, flush=True)

    def tick(self, step: str, done: int, total: int, unit: str, note: str = "") -> None:
        """Work done so far; printed when enough time has passed.

        Args:
            total: 0: not known yet.
            unit: Of what is counted; a step may count one thing after the other.
        """
        with self._lock:
            line = self._lines.setdefault((step, unit), Line())
            now = time.monotonic()
            last = done == total and line.printed > 0.0  # or it would look broken off
            if not done:
                return
            rate = done / max(now - line.began, 1e-9)
            text = f"{done} {unit}, {rate:.1f}/s"
            if total:
                left = duration((total - done) / rate)
                text = f"{done}/{total} {unit}, {rate:.1f}/s, {left} left"
            text = line.text = f"{text}{', ' + note if note else ''}"
            if now - max(line.printed, line.began) < self.every and not last:
                return
            line.printed = now
        self.say(step, text)

    def latest(self, step: str) -> str:
        """What was last told of a step, printed or not; "": nothing yet."""
        with self._lock:
            return next(
                (line.text for (name, _), line in reversed(self._lines.items()) if name == step), ""
            )

    def end(self, step: str, text: str) -> None:
        with self._lock:
            for name in [name for name in self._lines if name[0] == step]:
                del self._lines[name]
        self.say(step, text)


def duration(seconds: float) -> str:
    """``8 s``, ``3 min 20 s``, ``2 h 5 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"
