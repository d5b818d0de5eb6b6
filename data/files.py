"""Files from outside, read safely: JSON, jsonl, and the log of skipped records.

Data cannot run code here: no pickle, no network, and no path out of the folder of a data set. What
makes a whole set doubtful raises `InputError` with file and line before any weight changes; what
spoils one record is skipped and counted in a `SkipLog`, which raises when too many are lost. No
input makes a reader hang: devices and pipes are not opened, and sizes are checked first.

Next: data/rows.py (questions), data/labelled.py (class names), data/coco.py (boxes).
"""

import importlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from config import MAX_SKIP
from runtime import unique_json
from runtime.errors import InputError, visible

MAX_LINE_BYTES = 64 * 2**20  # of jsonl, where a line is one row
MAX_JSON_BYTES = 2**31  # of json: COCO's instances_train2017.json is one line of 0.45 GB


@dataclass
class SkipLog:
    """Counts skipped records by reason and keeps the first five offenders."""

    reported: ClassVar[list[str]] = []  # every line printed by `check`: a run keeps them

    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def add(self, reason: str, offender: str) -> None:
        """Count one skipped record."""
        self.counts[reason] += 1
        self.first = [*self.first, f"{reason}: {offender}"][:5]

    def check(self, total: int, max_skip: float = MAX_SKIP) -> None:
        """Print one line if any of `total` were skipped; raise for > max(2, max_skip * total)."""
        skipped = self.counts.total()
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common())
        reasons = f" ({reasons})" if len(self.counts) > 1 else ""
        summary = "; ".join([f"{skipped} of {total} records skipped{reasons}", *self.first])
        if skipped > max(2, max_skip * total):
            fix = f"repair them, or raise --max_skip {max_skip:g}"
            raise InputError(f"--data: too many lost, {fix}: {summary}")
        if skipped:
            print(f"data: {visible(summary)}")
            SkipLog.reported.append(summary)


def optional_import(module: str, package: str = ""):
    """Import a module; InputError naming the package to install if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module
        raise InputError(
            f"{package} is missing, which this needs: pip install {package}"
        ) from error


def read_json(path: Path, fallback_encoding: str | None = None) -> Any:
    """Parse a JSON file in UTF-8 or the fallback.

    Raises:
        InputError: no regular file, unreadable, too large, nested too deep, or no JSON; the message
            names file and line. NaN and 1e999 pass: who uses a number refuses them with its record.
    """
    with _open(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: is larger than {MAX_JSON_BYTES} bytes; split the file")
        return _parse_json(file.read(), str(path), 1, fallback_encoding)


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) of a file with one JSON value a line; blank lines pass."""
    with _open(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise InputError(f"{path}:{number}: line of more than {MAX_LINE_BYTES} bytes")
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                yield number, _parse_json(line.rstrip(), str(path), number)


def _open(path: Path) -> BinaryIO:
    if not os.path.isfile(path):  # opening a FIFO may never return
        raise InputError(f"{path}: is missing or no regular file; check the path")
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its rights") from error


def _parse_json(data: bytes, file: str, line: int, fallback_encoding: str | None = None) -> Any:
    """Parse `data`, which starts in the given line of the file."""
    if data.startswith(b"version https://git-lfs"):
        raise InputError(f"{file}: a git-lfs pointer; run git lfs pull")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        raise InputError(f"{file}:{line}: is UTF-16 or binary; save it as UTF-8")
    try:
        return unique_json.loads(data.decode("utf-8-sig"))
    except unique_json.DuplicateKeyError as error:
        raise InputError(f"{file}:{line}: {error}; which one is meant? Remove the other") from None
    except UnicodeDecodeError as error:
        if fallback_encoding is not None:
            text = data.decode(fallback_encoding, errors="replace")
            return _parse_json(text.encode(), file, line)
        line += data.count(b"\n", 0, error.start)
        raise InputError(f"{file}:{line}: is not UTF-8; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        is_jsonl = error.msg == "Extra data" and file.lower().endswith(".json")
        fix = "if it has one row a line, name it .jsonl" if is_jsonl else "repair it"
        if file.lower().endswith(".jsonl"):
            fix = "repair it: each line of a .jsonl is one row, without commas between them"
        reason = f"is no JSON ({error.msg}, column {error.colno}); {fix}"
        raise InputError(f"{file}:{line + error.lineno - 1}: {reason}") from error
    except (ValueError, RecursionError) as error:  # an integer of more than 4300 digits, and such
        raise InputError(f"{file}:{line}: cannot be parsed ({error}); repair it") from error
