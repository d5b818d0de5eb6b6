"""How a run is asked to end: SIGTERM, SIGHUP and Ctrl-C, at a moment when nothing can be lost.

Signals belong to the process, so there is one `signals` object, which a run installs and removes.
Next: parallel.py.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from model.errors import InputError

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LEFT = signal.SIGUSR1  # sent by this process to itself: another rank has left


class Stopped(BaseException):
    """A signal asked the run to end. Not an Exception, so that no code from outside swallows it."""

    def __init__(self, number: int):
        self.number = number


class Elsewhere(InputError):
    """Another rank has failed; the message names it and the cause, where it is known already."""


class StopSignals:
    """SIGTERM, SIGHUP, Ctrl-C become `Stopped`: at once while weights rest, else when they next do.

    A second signal ends the process without saving.
    """

    def __init__(self):
        self.received: int | None = None
        self.held = False
        self.previous: dict[int, object] = {}

    def install(self) -> None:
        self.received, self.held = None, False
        if threading.current_thread() is threading.main_thread():  # Python's rule for handlers
            for number in ASKING:
                self.previous[number] = signal.signal(number, self._arrived)
            self.previous[LEFT] = signal.signal(LEFT, self._left)

    def remove(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}

    def _arrived(self, number: int, frame: object) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        if not self.held:
            raise Stopped(number)

    def _left(self, number: int, frame: object) -> None:
        if not self.held:  # else the next meeting of the ranks tells
            raise Elsewhere("another rank has left")

    def release(self) -> None:
        """The weights are at rest again."""
        self.held = False
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
