"""The user's reward function in processes of its own: with a deadline, and replaced when they die.

A reward is code from outside: it may hang, crash the interpreter, print without end or use up the
memory. So it never runs in the training process. A worker gets the completions of a question and
its example, and answers with JSON; training reads nothing else of it. Read first: training/scoring.py.
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
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from runtime.errors import InputError
from tasks import Example

UserFunction = Callable[[list[str], Example], Sequence[float | None]]
START_SECONDS = 120  # for the import of the user's file and whatever it imports
MAX_REPLY_BYTES = 10**7
PR_SET_PDEATHSIG = 1  # of Linux: a signal for us when our parent ends
MAX_TOLD = 2000  # characters of a traceback or of what was printed
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
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"--reward {path}: importing it fails ({what})") from error
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


# ---- in the worker -------------------------------------------------------------------------------


class Tail(io.TextIOBase):
    """Keeps the end of what is printed, however much that is."""

    def __init__(self):
        self.kept = ""

    def write(self, text: str) -> int:
        self.kept = (self.kept + text)[-MAX_TOLD:]
        return len(text)


def serve(connection: Connection, spec: str) -> None:
    """Answer requests until training is gone. Replies are JSON: {"values": ..} or {"fault": ..}."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for training to handle
    if hasattr(libc := ctypes.CDLL(None), "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also in the middle of an endless answer
    own = os.getpid()
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what C code prints
        os.dup2(silence, stream)
    said = sys.stdout = sys.stderr = Tail()
    try:
        function = load_user_reward(spec)
    except InputError as error:
        connection.send_bytes(json.dumps({"error": str(error)}).encode())
        return
    try:
        connection.send_bytes(b"{}")
        while True:
            job, texts, example = connection.recv()
            reply = _answer(function, texts, example, said) | {"job": job}
            if os.getpid() != own:  # a fork that the function left behind must not answer, too
                os._exit(1)
            connection.send_bytes(json.dumps(reply).encode())
    except (EOFError, OSError):  # closed: training has ended, nobody is left to tell
        return


def _answer(function: UserFunction, texts: list[str], example: Example, said: Tail) -> dict:
    said.kept = ""
    try:
        values = function(list(texts), example)
        return {"values": [value if value is None else float(value) for value in values]}
    except BaseException:  # code from outside: told to training, which counts it
        told = f"{traceback.format_exc()[-MAX_TOLD:]}\n{said.kept}"
        return {"fault": "exception", "what": told}


# ---- in training ---------------------------------------------------------------------------------


class Worker:
    """One process. Raises InputError at once if the user's file cannot be used."""

    def __init__(self, spec: str):
        context = multiprocessing.get_context("spawn")  # no threads or GPU state of training's
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, spec), daemon=True)
        self.process.start()
        theirs.close()
        if not self.connection.poll(START_SECONDS):
            self.kill()
            raise InputError(f"--reward {spec}: importing it takes longer than {START_SECONDS} s")
        error = self.reply().get("error")
        if error is not None:
            self.kill()
            raise InputError(error)

    def reply(self) -> dict:
        """What the worker says, or that it died. It is code from outside that speaks."""
        try:
            found = json.loads(self.connection.recv_bytes(MAX_REPLY_BYTES))
            return found if isinstance(found, dict) else {"fault": "died", "what": "no reply"}
        except (EOFError, OSError, ValueError, RecursionError) as error:
            self.process.join(1)
            what = f"the process ended with code {self.process.exitcode} ({error!r})"
            return {"fault": "died", "what": what, "error": f"--reward: {what}"}

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Workers:
    """Up to WORKERS processes that share the groups of a step."""

    def __init__(self, spec: str, timeout: float):
        check_spec(spec)
        self.spec, self.timeout = spec, timeout
        self.idle = [Worker(spec)]  # now, so that a bad file ends the run before it begins
        self.started = 1

    def answers(self, jobs: list[tuple[list[str], Example]]) -> list[dict]:
        """A reply for every (completions, example), in their order.

        Raises InputError only if the user's file cannot be imported any more.
        """
        waiting, busy = deque(enumerate(jobs)), {}  # connection -> (worker, job, deadline)
        replies: list[dict] = [{} for _ in jobs]
        while waiting or busy:
            while waiting and (self.idle or self.started < WORKERS):
                worker = self.idle.pop() if self.idle else self._another()
                n, job = waiting.popleft()
                try:
                    worker.connection.send((n, *job))
                    deadline = time.monotonic() + self.timeout
                    busy[worker.connection] = (worker, n, deadline)
                except OSError:  # it died while it was idle
                    replies[n] = worker.reply()
                    self._replace(worker)
            if not busy:
                continue
            patience = min(deadline for *_, deadline in busy.values()) - time.monotonic()
            for connection in wait(list(busy), max(0.0, patience)):
                worker, n, _ = busy.pop(connection)
                replies[n] = worker.reply()
                if replies[n].get("fault") != "died" and replies[n].get("job") != n:
                    replies[n] = {"fault": "died", "what": "an answer to another question"}
                if replies[n].get("fault") == "died":
                    self._replace(worker)
                else:
                    self.idle.append(worker)
            for worker, n, deadline in list(busy.values()):
                if time.monotonic() >= deadline and not worker.connection.poll():
                    del busy[worker.connection]
                    what = f"no answer within --reward_timeout {self.timeout:g} s"
                    replies[n] = {"fault": "timeout", "what": what}
                    self._replace(worker)
        return replies

    def _another(self) -> Worker:
        self.started += 1
        return Worker(self.spec)

    def _replace(self, worker: Worker) -> None:
        worker.kill()
        self.idle.append(Worker(self.spec))
