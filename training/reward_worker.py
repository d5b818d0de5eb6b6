"""The user's reward function in processes of its own: with a deadline, and replaced when they die.

A reward is code from outside: it may hang, crash the interpreter or print without end. So it runs
in workers of a pebble.ProcessPool, which kills what misses its deadline and replaces what dies. A
worker gets the completions of a question and its example, and answers with JSON. (Between the two
stand pickles: the user's code is trusted not to attack training, only not to work.)
Read first: training/scoring.py.
"""

import ctypes
import importlib.util
import io
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, TimeoutError
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from data.examples import Example
from runtime import distributed
from runtime.errors import InputError, one_line

UserFunction = Callable[[list[str], Example], Sequence[float | None]]
START_SECONDS = 120  # for the import of the user's file and whatever it imports
PR_SET_PDEATHSIG = 1  # of Linux: a signal for us when our parent ends
MAX_SHOWN = 2000  # characters of a traceback or of what was printed
WORKERS = max(1, min(4, (os.cpu_count() or 1) // 2))


def load_user_reward(spec: str) -> UserFunction:
    """Import `path/to/file.py:function`. Raises InputError if there is no such function."""
    path, _, name = spec.rpartition(":")
    module_spec = importlib.util.spec_from_file_location("user_reward", path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses look their module up
    try:
        module_spec.loader.exec_module(module)
    except BaseException as error:  # whatever the user's file does when it is imported
        reason = one_line(error)
        raise InputError(f"--reward {path}: importing it fails ({reason})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"--reward {path}: has no function {name!r}")
    return function


def check_spec(spec: str) -> None:
    """Raise InputError for what cannot be `path/to/file.py:function`."""
    path, colon, name = spec.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise InputError(f"--reward {spec!r}: must be path/to/file.py:function")
    if not Path(path).is_file():
        raise InputError(f"--reward {path}: no such file")


class _Tail(io.TextIOBase):
    """Keeps the end of what is printed, however much that is."""

    def __init__(self):
        self.text = ""

    def write(self, text: str) -> int:
        self.text = (self.text + text)[-MAX_SHOWN:]
        return len(text)


class _Worker:
    """What a worker process holds between two questions."""

    function: UserFunction
    error: str | None = None
    printed = _Tail()


def start_worker(spec: str) -> None:
    """Import the user's file in a fresh process; what goes wrong is reported by `answer`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for training to handle
    if hasattr(libc := ctypes.CDLL(None), "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also in the middle of an endless answer
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what C code prints
        os.dup2(silence, stream)
    sys.stdout = sys.stderr = _Worker.printed
    try:
        _Worker.function = load_user_reward(spec)
    except InputError as error:
        _Worker.error = str(error)


def answer(texts: list[str], example: Example | None) -> str:
    """The reply to one question as JSON: {"values": ..}, {"fault": ..}, or {"error": ..}."""
    if _Worker.error is not None or example is None:
        return json.dumps({"error": _Worker.error})
    _Worker.printed.text, worker = "", os.getpid()
    try:
        values = _Worker.function(list(texts), example)
        reply = {"values": [value if value is None else float(value) for value in values]}
    except BaseException:  # code from outside: reported to training, which counts it
        output = f"{traceback.format_exc()[-MAX_SHOWN:]}\n{_Worker.printed.text}"
        reply = {"fault": "exception", "what": output}
    if os.getpid() != worker:  # a fork that the function left behind must not answer, too
        os._exit(1)
    return json.dumps(reply)


def end_pool(pool: ProcessPool) -> None:
    """End all workers now."""
    pool.stop()
    pool.join()


class Workers:
    """Up to WORKERS processes that share the groups of a step; they end with this object.

    Raises InputError if the user's file cannot be used.
    """

    def __init__(self, spec: str, timeout: float):
        check_spec(spec)
        self.spec, self.timeout = spec, timeout
        self._start_pool()

    def _start_pool(self) -> None:
        context = multiprocessing.get_context("spawn")  # no threads or GPU state of training's
        initial = {"initializer": start_worker, "initargs": (self.spec,)}
        self.pool = ProcessPool(WORKERS, context=context, **initial)
        weakref.finalize(self, end_pool, self.pool)
        reply = self._reply(self.pool.schedule(answer, ([], None)), START_SECONDS)
        error = f"importing it ends its process, or takes longer than {START_SECONDS:g} s"
        if (error := reply.get("error", f"--reward {self.spec}: {error}")) is not None:
            raise InputError(error)

    def answers(self, questions: list[tuple[list[str], Example]]) -> list[dict]:
        """A reply for every (completions, example), in their order. Also a stop point.

        Raises InputError only if the user's file cannot be imported any more.
        """
        replies: list[dict] = []
        while len(replies) < len(questions):
            if not self.pool.active:  # a worker ended while it waited for a question
                self._start_pool()
            rest = questions[len(replies) :]
            futures = [self.pool.schedule(answer, q, timeout=self.timeout) for q in rest]
            for future in futures:
                replies.append(self._reply(future, START_SECONDS + self.timeout * len(questions)))
                if not self.pool.active:  # the others are asked again, in a new pool
                    break
        return replies

    def _reply(self, future: Future, seconds: float) -> dict:
        """Wait `seconds` at most; what a worker cannot say itself becomes a fault."""
        deadline = time.monotonic() + seconds  # that of a question begins after the import only
        while True:
            try:
                return json.loads(future.result(timeout=0.5))
            except TimeoutError:
                if future.done():
                    reason = f"no answer within --reward_timeout {self.timeout:g} s"
                    return {"fault": "timeout", "what": reason}
                if not self.pool.active or time.monotonic() > deadline:
                    return {"fault": "died", "what": "the process ended, or hangs in its import"}
                distributed.stop_point()
            except ProcessExpired as error:
                reason = f"the process ended with code {error.exitcode}"
                return {"fault": "died", "what": reason}
            except (CancelledError, RuntimeError) as error:  # the pool is broken
                return {"fault": "died", "what": str(error)}
