"""How a script prints and ends: lines on stdout, one line on stderr for bad input, an exit code.

Next: runtime/signals.py.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

from runtime.errors import InputError, visible

advice: str | None = None  # of this run's memory plan, where memory runs out


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a CPU or a GPU."""
    message = str(error).lower()
    phrases = ("out of memory", "allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(phrase in message for phrase in phrases)


class SafeStream:
    """stdout or stderr. Once its disk is full or its reader is gone, further text is dropped.

    With `is_optional` a lost stream ends nothing; otherwise it ends the script with one line.
    """

    def __init__(self, stream: TextIO, is_optional: bool):
        self.stream, self.is_optional = stream, is_optional

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write to the stream."""
        self._attempt(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._attempt(self.stream.flush)

    def _attempt(self, operation: Callable, *args: str) -> None:
        try:
            operation(*args)
        except OSError as error:
            with open(os.devnull, "w") as devnull:
                os.dup2(devnull.fileno(), self.stream.fileno())
            if not self.is_optional and isinstance(error, BrokenPipeError):  # `| head` is done
                raise SystemExit(128 + signal.SIGPIPE) from None
            if not self.is_optional:
                raise InputError(f"stdout cannot be written ({error})") from None
            if self is not sys.stderr:
                print(f"stdout cannot be written ({error}); continuing without", file=sys.stderr)


def run(main: Callable[[], None], trains: bool = False, memory_flags: str = "") -> None:
    """Run a script's main(): bad input becomes one line on stderr and exit code 2.

    Args:
        trains: what counts is in files, so a stdout that cannot be written ends nothing.
        memory_flags: of this script, which bring its memory down.
    """
    global advice
    advice = None  # that of an earlier run in this process is about other settings
    streams = sys.stdout, sys.stderr
    out, err = (stream or open(os.devnull, "w") for stream in streams)  # None: closed by `>&-`
    out.reconfigure(line_buffering=trains or None)
    for stream in (out, err):  # a terminal that cannot show a letter gets \\xNN
        stream.reconfigure(errors="backslashreplace")
    is_one_of_many = os.environ.get("WORLD_SIZE", "1") != "1"  # the others would wait for it
    sys.stdout = SafeStream(out, is_optional=trains or is_one_of_many)
    sys.stderr = SafeStream(err, is_optional=True)
    try:
        _run(main, trains, memory_flags)
    finally:
        sys.stdout, sys.stderr = streams


def _run(main: Callable[[], None], trains: bool, memory_flags: str) -> None:
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        _exit(str(error), 2)
    except PermissionError as error:
        _exit(f"{error.filename}: {error.strerror}; check its rights", 2)
    except KeyboardInterrupt:
        _exit("interrupted; checkpoints and logs already written are whole", 130)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        now = "lower --groups_per_micro_batch or give --gradient_checkpointing (on resume, too)"
        fix = f"{now}, or start anew with a lower {memory_flags}" if trains else ""
        fix = advice or fix or (f"lower {memory_flags}" if memory_flags else "close other programs")
        _exit(f"out of memory; {fix} ({error})", 2)


def _exit(message: str, code: int) -> None:
    print(f"error: {visible(' '.join(message.split())[:2000])}", file=sys.stderr)
    sys.exit(code)
