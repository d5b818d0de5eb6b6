"""Files from outside, read safely: paths, JSON, tables, and the log of what was skipped.

Data cannot run code here: no pickle, no network, and no path out of the folder of a data set. What
makes a whole set doubtful (a missing file, broken JSON, a path that leaves the folder) raises
`InputError` with file and line before any weight changes; what spoils one record is skipped and
counted in a `SkipLog`, which refuses to go on when too many are lost. No input makes a reader hang
or recurse without bound: devices and pipes are not opened, sizes and nesting are checked first.

Next: data/rows.py (questions), data/labelled.py (class names), data/coco.py (boxes).
"""

import importlib
import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from config import MAX_SKIP
from runtime.errors import InputError, visible

MAX_LINE_BYTES = 64 * 2**20  # of jsonl, where a line is one row
MAX_JSON_BYTES = 2**31  # of json: COCO's instances_train2017.json is one line of 0.45 GB
MAX_NESTING = 100  # json.loads recurses


@dataclass
class SkipLog:
    """Counts skipped records by reason and keeps the first five offenders."""

    reported: ClassVar[list[str]] = []  # every line printed by `check`: a run keeps them

    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def add(self, reason: str, offender: str) -> None:
        self.counts[reason] += 1
        self.first = [*self.first, f"{reason}: {offender}"][:5]

    def check(self, total: int, max_skip: float = MAX_SKIP) -> None:
        """Print one line if any are lost; raise InputError for more than max(2, max_skip * total).

        `total` counts the records read, the skipped ones included.
        """
        skipped = self.counts.total()
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common())
        listed = f" ({reasons})" if len(self.counts) > 1 else ""
        summary = "; ".join([f"{skipped} of {total} records skipped{listed}", *self.first])
        if skipped > max(2, max_skip * total):
            fix = f"repair them, or raise --max_skip {max_skip:g}"
            raise InputError(f"--data: too many lost, {fix}: {summary}")
        if skipped:
            print(f"data: {visible(summary)}")
            SkipLog.reported.append(summary)


# -------------------------------------------------------------------------------- paths and files


def local_path(data: str, accepted: str) -> Path:
    """Return what `--data` names; raise InputError for URLs and for what does not exist."""
    path = Path(data)
    if is_url(data):
        raise InputError(f"--data {data!r} is a URL; download the data set and name its folder")
    if "\0" in data or not os.path.exists(path):
        raise InputError(f"--data {data!r} does not exist{similar_name(path)}; {accepted}")
    return path


def is_url(name: str) -> bool:
    return "://" in name or name.lower().startswith(("data:", "file:", "http:", "https:"))


def inside(root: Path, name: str, where: str) -> Path:
    """Return `root / name`, refusing URLs, `..`, absolute paths and links that lead out of root."""
    if is_url(name) or "\0" in name:
        raise InputError(f"{where}: {name!r} is no path below {str(root)!r}; copy the file there")
    path = root / name
    try:
        found = Path(os.path.realpath(path))
    except UnicodeEncodeError as error:
        fix = "is no file name in this locale; set PYTHONUTF8=1"
        raise InputError(f"{where}: {name!r} {fix}") from error
    except OSError as error:  # a name of thousands of characters
        raise InputError(f"{where}: {name[:200]!r} is no file name ({error.strerror})") from error
    if not found.is_relative_to(os.path.realpath(root)):
        raise InputError(f"{where}: {name!r} leads out of {str(root)!r}; copy the file there")
    return path


def check_files(named: Iterable[tuple[str, Path]]) -> None:
    """Raise for images that are no regular files: a whole set with wrong paths is no small loss."""
    named = list(named)
    if strange := [name for name, _ in named if not name.isprintable()]:
        raise InputError(f"--data: {strange[0]!r} is no printable name; rename the file or folder")
    if missing := [(name, path) for name, path in named if not os.path.isfile(path)]:
        listed = "; ".join(f"{n}: {str(path)!r}{similar_name(path)}" for n, path in missing[:5])
        raise InputError(f"--data: {len(missing)} images missing or no regular files: {listed}")


def similar_name(path: Path) -> str:
    """Return a hint if a neighbour differs only in case or in its Unicode form, else ""."""
    if "\0" in str(path) or not os.path.isdir(path.parent):
        return ""
    siblings = sorted(os.listdir(path.parent))
    folded = [unicodedata.normalize("NFC", name).casefold() for name in [path.name, *siblings]]
    similar = [name for name, key in zip(siblings, folded[1:], strict=True) if key == folded[0]]
    return f" (did you mean {similar[0]!r}?)" if similar and path.name not in similar else ""


def optional_import(module: str, package: str = ""):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module
        raise InputError(f"--data needs {package}: pip install {package}") from error


# ---------------------------------------------------------------------------------- json and tables


def read_json(path: Path, fallback_encoding: str | None = None) -> Any:
    """Parse a JSON file, strictly: UTF-8 (or the fallback), finite numbers, at most 100 levels.

    Raises:
        InputError: no regular file, unreadable, or not that; the message names file and line.
    """
    with _opened(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: is larger than {MAX_JSON_BYTES} bytes; split the file")
        return _strict_json(file.read(), str(path), 1, fallback_encoding)


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) of a file with one JSON value a line; blank lines pass."""
    with _opened(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise InputError(f"{path}:{number}: line of more than {MAX_LINE_BYTES} bytes")
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                yield number, _strict_json(line, str(path), number)


def _opened(path: Path) -> BinaryIO:
    if not os.path.isfile(path):  # opening a FIFO may never return
        raise InputError(f"{path}: is missing or no regular file; check the path")
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its rights") from error


class _NotFinite(ValueError):
    """A number in the text that no float can hold, or no number at all."""


def _strict_json(data: bytes, file: str, line: int, fallback_encoding: str | None = None) -> Any:
    """Parse `data`, which starts in the given line of the file."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        raise InputError(f"{file}:{line}: is UTF-16 or binary; save it as UTF-8")
    if _nesting(data) > MAX_NESTING:
        raise InputError(f"{file}:{line}: nested more than {MAX_NESTING} levels deep; flatten it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if fallback_encoding is None:
            line += data.count(b"\n", 0, error.start)
            raise InputError(f"{file}:{line}: is not UTF-8; save it as UTF-8") from error
        text = data.decode(fallback_encoding, errors="replace")
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except _NotFinite as error:
        place = _place_of_non_finite(text)
        raise InputError(f"{file}:{line}: {place} is not a finite number; repair it") from error
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data" and file.lower().endswith(".json")
        fix = "if it has one row a line, name it .jsonl" if lines else "repair it"
        what = f"is no JSON ({error.msg}, column {error.colno}); {fix}"
        raise InputError(f"{file}:{line + error.lineno - 1}: {what}") from error
    except (ValueError, RecursionError) as error:  # an integer of more than 4300 digits, and such
        raise InputError(f"{file}:{line}: cannot be parsed ({error}); repair it") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _NotFinite(text)
    return value


def _place_of_non_finite(text: str) -> str:
    """Return where the first NaN or infinity is, as "[3] (id 'a')['box'][0]"; for messages only."""

    def search(value: Any, place: str) -> str | None:
        if isinstance(value, float):
            return None if math.isfinite(value) else place
        if isinstance(value, dict) and "id" in value:
            place += f" (id {value['id']!r:.60})"
        if isinstance(value, dict | list):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                if found := search(part, f"{place}[{key!r:.60}]"):
                    return found
        return None

    try:
        return search(json.loads(text), "") or "it"
    except (ValueError, RecursionError):  # the text has further faults
        return "a value"


_NO_BRACKET = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as int8: one level down, one level up


def _nesting(data: bytes) -> int:
    """Return the depth of brackets outside strings, in linear time without recursion."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")  # now every quote ends a string
    outside = b"".join(data.translate(None, _NO_BRACKET).split(b'"')[::2])
    steps = np.frombuffer(outside.translate(_STEPS), dtype=np.int8)
    return int(steps.cumsum(dtype=np.int64).max(initial=0))


def table_files(path: Path) -> list[Path]:
    """Return the parquet or arrow files of a table, [] where `path` holds none.

    A table is a .parquet file, a folder of them (directly or in `data`, as hubs lay them out), or
    a folder written by `datasets.save_to_disk` (of a DatasetDict, its `train` split).
    """
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    if parquet := sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")):
        return parquet
    saved = next((d for d in (path, path / "train") if (d / "state.json").is_file()), None)
    if saved is None:
        if (path / "dataset_dict.json").exists():
            raise InputError(f"--data {str(path)!r} is a DatasetDict without a train split")
        return []
    # Only what state.json lists: cached results of map() lie beside it under similar names.
    state = read_json(saved / "state.json")
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{saved}/state.json: lists no _data_files; save it again") from error
    return [inside(saved, name, "state.json") for name in names]


def table_rows(file: Path) -> Iterator[dict]:
    """Yield the rows of a .parquet file or of an arrow stream."""
    pyarrow = optional_import("pyarrow")
    parquet = optional_import("pyarrow.parquet", "pyarrow")
    try:
        with pyarrow.memory_map(str(file)) as source:
            if file.suffix.lower() == ".parquet":
                table = parquet.ParquetFile(source)
                columns, batches = table.schema_arrow.names, table.iter_batches(batch_size=64)
            else:
                batches = pyarrow.ipc.open_stream(source)
                columns = batches.schema.names
            if len(set(columns)) < len(columns):
                raise InputError(f"{file}: has two columns of one name: {columns}; rename one")
            for batch in batches:
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot read the table ({error}); download it again") from error
