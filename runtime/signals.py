"""How a run is asked to end: Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 (by which batch systems warn that
time is nearly up), at a moment when nothing can be lost.

Signals belong to the process, so there is one `signals` object, which a run installs and removes.
Next: runtime/distributed.py.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import InputError

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
GRACE = 10.0  # seconds in which a signal may arrive twice without meaning more
LEFT = signal.SIGURG  # sent by this process to itself, and by nobody else: another rank has left


class Stopped(BaseException):
    """A signal asked the run to end. Not an Exception, so that no code from outside swallows it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Elsewhere(InputError):
    """Another rank has failed; the message names it and the cause."""


class AnotherLeft(BaseException):
    """Raised anywhere in the main thread: another rank has left, and why will be told."""


class StopSignals:
    """What asks to end becomes `Stopped`: at once while the weights rest, else when they next do.

    A second signal ends the process without saving. Of several ranks only one that comes later: a
    batch system signals each of them, and torchrun does so once more.
    """

    def __init__(self):
        self.received: int | None = None
        self.since, self.grace = 0.0, 0.0  # seconds
        self.held = False
        self.previous: dict[int, object] = {}

    def install(self, ranks: int = 1) -> None:
        self.received, self.held = None, False
        self.grace = GRACE if ranks > 1 else 0.0
        if threading.current_thread() is threading.main_thread():  # Python's rule for handlers
            self.previous[LEFT] = signal.signal(LEFT, self._left)
            for number in ASKING:
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # nohup
                self.previous[number] = signal.signal(number, self._arrived)

    def remove(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: was not set from Python
        self.previous = {}

    def _arrived(self, number: int, frame: object) -> None:
        if self.received is not None:
            if time.monotonic() >= self.since + self.grace:
                os._exit(128 + number)
            return
        self.received, self.since = number, time.monotonic()
        if not self.held:
            self.held = True  # for what happens on the way out
            raise Stopped(number)

    def _left(self, number: int, frame: object) -> None:
        if not self.held:  # else the next message tells
            self.held = True
            raise AnotherLeft

    def release(self) -> None:
        """The weights are at rest again."""
        self.held = self.received is not None  # on the way out nothing more comes through
        if self.received is not None:
            raise Stopped(self.received)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """A part that must not be cut in two."""
        was_held, self.held = self.held, True
        yield
        if not was_held:
            self.release()


signals = StopSignals()
