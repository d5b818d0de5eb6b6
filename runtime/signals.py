"""How a run is asked to stop: Ctrl-C, SIGTERM, SIGHUP, and SIGUSR1, which batch systems send when
time is nearly up.

A handler only notes the signal. The run looks at it where nothing is half done, at the stop points
of runtime/distributed.py, and raises `Stopped` there. Signals belong to the process, so there is
one `signals` object, which a run installs and removes. Next: runtime/distributed.py.
"""

import os
import signal
import threading
import time

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
GRACE = 10.0  # seconds in which a signal to one of several ranks may arrive twice


class Stopped(BaseException):
    """A signal asked the run to stop. Not an Exception, so that no user code swallows it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopSignals:
    """The stop signal that was received, and whether it may interrupt the run now.

    Attributes:
        received: number of the first stop signal, None before it.
        deferred: stopping has to wait, for an update is in progress and the weights belong to no
            finished step, or the run is ending already.
    """

    def __init__(self):
        self.received: int | None = None
        self.deferred = False
        self.received_at, self.grace = 0.0, 0.0  # seconds
        self.previous: dict[int, object] = {}

    def install(self, ranks: int = 1) -> None:
        """Handle the stop signals until `remove`.

        A second signal ends the process at once, without saving. With several ranks it has to come
        after GRACE: a batch system signals every process, and torchrun does so once more.
        """
        self.received, self.deferred = None, False
        self.grace = GRACE if ranks > 1 else 0.0
        if threading.current_thread() is not threading.main_thread():
            return  # Python allows handlers in the main thread only
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup
            self.previous[number] = signal.signal(number, self._receive)

    def remove(self) -> None:
        """Bring the former handlers back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: was not set from Python
        self.previous, self.received = {}, None

    def raise_if_received(self, number: int | None) -> None:
        """Raise `Stopped` for a signal, unless that has to wait."""
        if number is not None and not self.deferred:
            raise Stopped(number)

    def _receive(self, number: int, stack_frame: object) -> None:
        if self.received is None:
            self.received, self.received_at = number, time.monotonic()
        elif time.monotonic() >= self.received_at + self.grace:
            os._exit(128 + number)


signals = StopSignals()
