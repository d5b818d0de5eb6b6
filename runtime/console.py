"""How a script speaks: lines on stdout, one line on stderr for bad input, and an exit code.

Next: train_grpo.py.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

from data.files import visible
from runtime.errors import InputError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a CPU or a GPU."""
    said = str(error).lower()
    ran_out = "out of memory" in said or "allocate memory" in said or "not enough memory" in said
    return isinstance(error, MemoryError) or ran_out


class Told:
    """stdout or stderr. Where the disk under it is full, or its reader is gone, the rest goes
    nowhere. A lost stdout ends a script with one line, but not a training run, which is worth more.
    """

    def __init__(self, stream: TextIO, goes_on: bool):
        self.stream, self.goes_on = stream, goes_on

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._do(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._do(self.stream.flush)

    def _do(self, act: Callable, *args: str) -> None:
        try:
            act(*args)
        except OSError as error:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())
            if not self.goes_on and isinstance(error, BrokenPipeError):  # `| head` has seen enough
                raise SystemExit(128 + signal.SIGPIPE) from None
            if not self.goes_on:
                raise InputError(f"stdout cannot be written ({error})") from None
            if self is not sys.stderr:
                print(f"stdout cannot be written ({error}); going on without", file=sys.stderr)


def run(main, trains: bool = False) -> None:
    """Run a script's main(): bad input becomes one line on stderr and exit code 2.

    trains: what counts is in files, so a stdout that cannot be written ends nothing.
    """
    streams = sys.stdout, sys.stderr
    out, err = (stream or open(os.devnull, "w") for stream in streams)  # None: closed by `>&-`
    out.reconfigure(line_buffering=trains or None)
    for stream in (out, err):  # a terminal that cannot show a letter gets \\xNN
        stream.reconfigure(errors="backslashreplace")
    is_one_of_many = os.environ.get("WORLD_SIZE", "1") != "1"  # the others would wait for it
    sys.stdout, sys.stderr = Told(out, trains or is_one_of_many), Told(err, goes_on=True)
    try:
        _run(main)
    finally:
        sys.stdout, sys.stderr = streams


def _run(main) -> None:
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        _stop(str(error), 2)
    except KeyboardInterrupt:
        _stop("interrupted; checkpoints and logs already written are whole", 130)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        now = "lower --groups_per_micro_batch or give --gradient_checkpointing (a run may go on so)"
        anew = "--prompts_per_step, --num_generations, --max_completion_length, --max_pixels"
        _stop(f"out of memory; {now}, or begin with a lower {anew} ({error})", 2)


def _stop(message: str, code: int) -> None:
    print(f"error: {visible(' '.join(message.split())[:2000])}", file=sys.stderr)
    sys.exit(code)
