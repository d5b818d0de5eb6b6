"""The user's reward function in processes of its own: with a deadline, and replaced when they die.

A reward is code from outside: it may hang, crash the interpreter or print without end. So it runs
in workers of a pebble.ProcessPool, which kills what misses its deadline and replaces what dies. A
worker gets the completions of a question and its example, and answers with JSON. (Between the two
stand pickles: the user's code is trusted not to attack training, only not to work.)

A run is paid by one code from its first step to its last: workers get the source that was read when
the run began, and the files that it imports from its own folder while it is loaded must stay as
they were then.
Read first: training/scoring.py.
"""

import ctypes
import hashlib
import importlib.util
import inspect
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
from typing import Any, ClassVar

from pebble import ProcessExpired, ProcessPool

from data.examples import Example
from runtime import distributed
from runtime.errors import InputError, one_line

UserFunction = Callable[[list[str], Example], Sequence[float | None]]
ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120  # for the import of the user's file and whatever it imports
PR_SET_PDEATHSIG = 1  # of Linux: a signal for us when our parent ends
MAX_SHOWN = 2000  # characters of a traceback or of what was printed
WORKERS = max(1, min(4, (os.cpu_count() or 1) // 2))


def load_user_reward(spec: str, source: bytes) -> UserFunction:
    """The function of `path/to/file.py:function`, where the file has this source.

    Raises InputError if there is none, or if it cannot be called with completions and an example.
    """
    path, _, name = spec.rpartition(":")
    module_spec = importlib.util.spec_from_file_location("user_reward", path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses look their module up
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except BaseException as error:  # whatever the user's file does when it is imported
        reason = one_line(error)
        raise InputError(f"--reward {path}: importing it fails ({reason})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"--reward {path}: has no function {name!r}")
    if inspect.iscoroutinefunction(function):
        raise InputError(f"--reward {path}: {name} is async; it must return its numbers itself")
    try:
        inspect.signature(function).bind([], None)
    except TypeError as error:
        called = f"cannot be called as {name}(completions, example)"
        raise InputError(f"--reward {path}: {name} {called} ({error})") from None
    except ValueError:  # it has none that could be read
        pass
    return function


def read_source(spec: str) -> bytes:
    """The file of `path/to/file.py:function`; raises InputError for what cannot be one."""
    path, colon, name = spec.rpartition(":")
    if not colon or not path.endswith(".py") or not name.isidentifier():
        raise InputError(f"--reward {spec!r}: must be path/to/file.py:function")
    if not Path(path).is_file():
        raise InputError(f"--reward {path}: no such file")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"--reward {path}: cannot be read ({error.strerror})") from None


def imported_files(before: set[str], path: Path) -> dict[str, str]:
    """sha256 of the files, relative to the folder of `path` or to the working directory, of the
    modules imported since `before` was loaded. Installed packages and this project are left out.
    """
    found = {}
    for name in sys.modules.keys() - before:
        file = Path(getattr(sys.modules[name], "__file__", None) or "-").resolve()
        if file.suffix != ".py" or "site-packages" in file.parts or _is_of_the_project(file):
            continue
        for folder in (path.resolve().parent, Path.cwd()):
            if file.is_relative_to(folder) and not file.is_relative_to(sys.base_prefix):
                found[str(file.relative_to(folder))] = hashlib.sha256(file.read_bytes()).hexdigest()
                break
    return found


def _is_of_the_project(file: Path) -> bool:
    if not file.is_relative_to(ROOT):
        return False
    top = ROOT / file.relative_to(ROOT).parts[0]
    return (top / "__init__.py").is_file() or top.stem in ("answers", "config", "rewards", "sample")


def numbers(values: Any) -> list[float | None]:
    """What a reward has returned, as floats; None stays.

    Raises TypeError for anything but a list, a tuple, an array or a tensor of numbers: the keys of
    a dict, the letters of a text and the order of a set are no rewards.
    """
    if not isinstance(values, list | tuple) and hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, list | tuple):
        kind = type(values).__name__
        raise TypeError(f"must return a list, tuple, array or tensor of numbers, not {kind}")
    if wrong := [value for value in values if isinstance(value, str | bytes | list | tuple | dict)]:
        raise TypeError(f"must return numbers, one for each answer, not {wrong[0]!r:.50}")
    return [value if value is None else float(value) for value in values]


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
    imports: ClassVar[dict[str, str]] = {}
    printed = _Tail()


def start_worker(spec: str, source: bytes) -> None:
    """Import the user's file in a fresh process; what goes wrong is reported by `answer`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for training to handle
    if hasattr(libc := ctypes.CDLL(None), "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also in the middle of an endless answer
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what C code prints
        os.dup2(silence, stream)
    sys.stdout = sys.stderr = _Worker.printed
    before = {*sys.modules, "user_reward"}
    try:
        _Worker.function = load_user_reward(spec, source)
        _Worker.imports = imported_files(before, Path(spec.rpartition(":")[0]))
    except (InputError, OSError) as error:
        _Worker.error = str(error)


def answer(texts: list[str], example: Example | None) -> str:
    """The reply to one question as JSON: {"values": ..}, {"fault": ..}, or {"error": ..}.

    With each comes what the worker has imported.
    """
    if _Worker.error is not None or example is None:
        return json.dumps({"error": _Worker.error, "imports": _Worker.imports})
    _Worker.printed.text, worker = "", os.getpid()
    try:
        values = _Worker.function(list(texts), example)
        reply = {"values": numbers(values)}
    except BaseException:  # code from outside: reported to training, which counts it
        output = f"{traceback.format_exc()[-MAX_SHOWN:]}\n{_Worker.printed.text}"
        reply = {"fault": "exception", "what": output}
    if os.getpid() != worker:  # a fork that the function left behind must not answer, too
        os._exit(1)
    return json.dumps(reply | {"imports": _Worker.imports})


def end_pool(pool: ProcessPool) -> None:
    """End all workers now."""
    pool.stop()
    pool.join()


class Workers:
    """Up to WORKERS processes that share the groups of a step; they end with this object.

    Raises InputError if the user's file cannot be used.

    Attributes:
        source: of the user's file, for the whole run. imports: see `imported_files`.
    """

    def __init__(self, spec: str, timeout: float):
        self.source = read_source(spec)
        self.spec, self.timeout = spec, timeout
        self.imports: dict[str, str] | None = None
        self._start_pool()

    @property
    def fingerprint(self) -> dict:
        """Of the code that pays: the function, its file, and what that imports."""
        sha256 = hashlib.sha256(self.source).hexdigest()
        function = self.spec.rpartition(":")[2]
        return {"function": function, "sha256": sha256, "imports": self.imports}

    def _start_pool(self) -> None:
        context = multiprocessing.get_context("spawn")  # no threads or GPU state of training's
        initial = {"initializer": start_worker, "initargs": (self.spec, self.source)}
        self.pool = ProcessPool(WORKERS, context=context, **initial)
        weakref.finalize(self, end_pool, self.pool)
        reply = self._reply(self.pool.schedule(answer, ([], None)), START_SECONDS)
        error = f"importing it ends its process, or takes longer than {START_SECONDS:g} s"
        self._check_code({"error": f"--reward {self.spec}: {error}"} | reply)

    def _check_code(self, reply: dict) -> None:
        """Raise InputError if a worker could not import the user's file, or imported another."""
        if reply.get("error") is not None:
            raise InputError(reply["error"])
        imports = reply.get("imports", self.imports)
        self.imports = imports if self.imports is None else self.imports
        if changed := sorted(dict(imports.items() ^ self.imports.items())):
            what = f"{changed[0]}, which it imports, has changed since the run began"
            raise InputError(f"--reward {self.spec}: {what}; restore it and resume")

    def answers(self, questions: list[tuple[list[str], Example]]) -> list[dict]:
        """A reply for every (completions, example), in their order. Also a stop point.

        Raises InputError only if the user's file cannot be imported any more, or has changed.
        """
        replies: list[dict] = []
        while len(replies) < len(questions):
            if not self.pool.active:  # a worker ended while it waited for a question
                self._start_pool()
            rest = questions[len(replies) :]
            futures = [self.pool.schedule(answer, q, timeout=self.timeout) for q in rest]
            for future in futures:
                replies.append(self._reply(future, START_SECONDS + self.timeout * len(questions)))
                self._check_code(replies[-1])
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
