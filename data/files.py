"""Files from outside, read safely: paths, pictures, JSON, tables, and the log of skipped records.

Data cannot run code here: no pickle, no network, and no path out of the folder of a data set. What
makes a whole set doubtful raises `InputError` with file and line before any weight changes; what
spoils one record is skipped and counted in a `SkipLog`, which raises when too many are lost. No
input makes a reader hang: devices and pipes are not opened, and sizes are checked first.

Next: data/rows.py (questions), data/labelled.py (class names), data/coco.py (boxes).
"""

import importlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar

from answers import MAX_NAME_CHARS, normalise_name
from config import MAX_SKIP
from runtime.errors import InputError, visible

T, R = TypeVar("T"), TypeVar("R")
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

    def readable(self, items: Iterable[T], decode: Callable[[T], Any]) -> list[T]:
        """Return the items that `decode` accepts; count those for which it raises InputError."""
        readable = []
        for item, result in zip(items, try_each(decode, items), strict=True):
            if isinstance(result, InputError):
                self.add("unreadable", f"{item.id!r}: {result}")
            else:
                readable.append(item)
        return readable

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


def local_path(data: str, accepted: str) -> Path:
    """Return what `--data` names; raise InputError for URLs and for what does not exist."""
    path = Path(data)
    if is_url(data):
        raise InputError(f"--data {data!r} is a URL; download the data set and name its folder")
    if "\0" in data or not os.path.exists(path):
        raise InputError(f"--data {data!r} does not exist{similar_name(path)}; {accepted}")
    return path


def is_url(name: str) -> bool:
    """Whether a name is a URL of any scheme that data sets carry."""
    return "://" in name or name.lower().startswith(("data:", "file:", "http:", "https:"))


def inside(root: Path, name: str, where: str) -> Path:
    """Return `root / name`, refusing URLs, `..`, absolute paths and links that lead out of root."""
    if is_url(name) or "\0" in name:
        raise InputError(f"{where}: {name!r} is no path below {str(root)!r}; copy the file there")
    path = root / name
    try:
        target = Path(os.path.realpath(path))
    except UnicodeEncodeError as error:
        fix = "is no file name in this locale; repair it, or set PYTHONUTF8=1"
        raise InputError(f"{where}: {name!r} {fix}") from error
    except OSError as error:  # a name of thousands of characters
        raise InputError(f"{where}: {name[:200]!r} is no file name ({error.strerror})") from error
    if not target.is_relative_to(os.path.realpath(root)):
        raise InputError(f"{where}: {name!r} leads out of {str(root)!r}; copy the file there")
    return path


def check_files(images: Iterable[tuple[str, Path]]) -> None:
    """Raise InputError, naming the first five, if images of (record, path) are no regular files."""
    images = list(images)
    if strange := [name for name, _ in images if not name.isprintable()]:
        raise InputError(f"--data: {strange[0]!r} is no printable name; rename the file or folder")
    if missing := [(name, path) for name, path in images if not os.path.isfile(path)]:
        first = "; ".join(f"{n}: {str(path)!r}{similar_name(path)}" for n, path in missing[:5])
        raise InputError(f"--data: {len(missing)} images missing or no regular files: {first}")


def check_names(names: Iterable[Any], where: str) -> None:
    """Raise InputError unless these are names of classes that differ after `normalise_name`."""
    spelling: dict[str, str] = {}
    for name in names:
        normalised = normalise_name(name) if isinstance(name, str) else ""
        if not normalised or len(name) > MAX_NAME_CHARS:
            raise InputError(f"{where}: {name!r:.80} cannot be a class name; rename it")
        if normalised in spelling:
            pair = f"{spelling[normalised]!r} and {name!r}"
            raise InputError(f"{where}: {pair} are the same answer; rename one")
        spelling[normalised] = name


def similar_name(path: Path) -> str:
    """Return a hint if a neighbour differs only in case or in its Unicode form, else ""."""
    if "\0" in str(path) or not os.path.isdir(path.parent):
        return ""
    siblings = sorted(os.listdir(path.parent))
    folded = [unicodedata.normalize("NFC", name).casefold() for name in [path.name, *siblings]]
    similar = [name for name, key in zip(siblings, folded[1:], strict=True) if key == folded[0]]
    return f" (did you mean {similar[0]!r}?)" if similar and path.name not in similar else ""


def optional_import(module: str, package: str = ""):
    """Import a module; InputError naming the package to install if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module
        raise InputError(
            f"{package} is missing, which this needs: pip install {package}"
        ) from error


def try_each(function: Callable[[T], R], items: Iterable[T]) -> list[R | InputError]:
    """Return a function's result, or its InputError, for every item; runs in threads."""

    def attempt(item: T) -> R | InputError:
        try:
            return function(item)
        except InputError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(attempt, items))


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
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        raise InputError(f"{file}:{line}: is UTF-16 or binary; save it as UTF-8")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        if fallback_encoding is not None:
            text = data.decode(fallback_encoding, errors="replace")
            return _parse_json(text.encode(), file, line)
        line += data.count(b"\n", 0, error.start)
        raise InputError(f"{file}:{line}: is not UTF-8; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        is_jsonl = error.msg == "Extra data" and file.lower().endswith(".json")
        fix = "if it has one row a line, name it .jsonl" if is_jsonl else "repair it"
        reason = f"is no JSON ({error.msg}, column {error.colno}); {fix}"
        raise InputError(f"{file}:{line + error.lineno - 1}: {reason}") from error
    except (ValueError, RecursionError) as error:  # an integer of more than 4300 digits, and such
        raise InputError(f"{file}:{line}: cannot be parsed ({error}); repair it") from error


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
        names = [os.fspath(entry["filename"]) for entry in state["_data_files"]]
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
                batches = parquet.ParquetFile(source).iter_batches(batch_size=64)
            else:
                batches = pyarrow.ipc.open_stream(source)
            for batch in batches:
                columns = batch.schema.names
                if len(set(columns)) < len(columns):
                    raise InputError(f"{file}: has two columns of one name: {columns}; rename one")
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot read the table ({error}); download it again") from error
