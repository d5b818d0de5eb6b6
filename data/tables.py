"""Which files hold the rows of a data set, and of which split; rows of parquet and arrow tables.

    row_files(Path("set"))   # [(set/data/train-0.parquet, "train"), (set/data/test-0.parquet, ..)]

Next: data/rows.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from data.files import optional_import, read_json
from data.paths import entries, inside
from data.splits import is_split_folder, split_of, split_of_path
from runtime.errors import InputError
from runtime.run_directory import is_lfs_pointer

JSON = (".json", ".jsonl")
METADATA = "metadata.jsonl"  # what an image folder of the `datasets` library calls its rows


def row_files(path: Path) -> list[tuple[Path, str]]:
    """Return the files that hold the rows of `path` and their splits ("" for none), or [].

    `path` is a .parquet, .json or .jsonl file; or a folder with parquet files (directly, in `data`,
    or in folders of splits), one that `datasets.save_to_disk` wrote, one whose .json or .jsonl
    files are all named as splits, or one with a metadata.jsonl beside the pictures.
    """
    if os.path.isfile(path):
        return [(path, "")] if path.suffix.lower() in (".parquet", *JSON) else []
    if not os.path.isdir(path):
        return []
    files = _parquet_files(path) or _saved_files(path) or _json_files(path)
    return [(file, split_of_path(file, path)) for file in files]


def _parquet_files(path: Path) -> list[Path]:
    found = [*path.glob("*.parquet"), *path.glob("data/*.parquet")]
    for file in (*path.glob("*/*.parquet"), *path.glob("*/*/*.parquet")):
        if split_of(file.stem) or is_split_folder(file.parent.name):
            found.append(file)
    return sorted(set(found))


def _saved_files(path: Path) -> list[Path]:
    """The arrow files of `datasets.save_to_disk`: of one set, or of each in a DatasetDict."""
    folders = [path] if os.path.isfile(path / "state.json") else []
    if not folders:
        folders = [p for p in entries(path) if os.path.isfile(p / "state.json")]
    if not folders and (path / "dataset_dict.json").exists():
        raise InputError(f"--data {str(path)!r} is a DatasetDict without any of its splits")
    files = []
    for saved in folders:
        # Only what state.json lists: cached results of map() lie beside it under similar names.
        state = read_json(saved / "state.json")
        try:
            names = [os.fspath(entry["filename"]) for entry in state["_data_files"]]
        except (KeyError, TypeError) as error:
            raise InputError(f"{saved}/state.json: lists no _data_files; save it again") from error
        files += [inside(saved, name, "state.json") for name in names]
    return files


def _json_files(path: Path) -> list[Path]:
    """Rows beside the pictures: metadata.jsonl, or files that are all named as splits."""
    metadata = [path / METADATA, *(p / METADATA for p in entries(path) if os.path.isdir(p))]
    if metadata := [file for file in metadata if os.path.isfile(file)]:
        return metadata
    files = [file for file in entries(path) if file.suffix.lower() in JSON and os.path.isfile(file)]
    return files if len(files) > 1 and all(split_of(file.stem) for file in files) else []


def table_rows(file: Path) -> Iterator[dict]:
    """Yield the rows of a .parquet file or of an arrow stream.

    Neither mapped nor buffered ahead: both would hold a set of pictures in memory twice.
    """
    if is_lfs_pointer(file):
        raise InputError(f"{file}: a git-lfs pointer; run git lfs pull")
    pyarrow = optional_import("pyarrow")
    try:
        yield from _table_rows(file)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot read the table ({error}); download it again") from error
    finally:
        pyarrow.default_memory_pool().release_unused()


def _table_rows(file: Path) -> Iterator[dict]:
    pyarrow = optional_import("pyarrow")
    parquet = optional_import("pyarrow.parquet", "pyarrow")
    with pyarrow.OSFile(str(file)) as source:
        if file.suffix.lower() == ".parquet":
            table = parquet.ParquetFile(source, pre_buffer=False, buffer_size=2**20)
            batches = table.iter_batches(batch_size=16, use_threads=False)
        else:
            batches = pyarrow.ipc.open_stream(source)
        for batch in batches:
            columns = batch.schema.names
            if len(set(columns)) < len(columns):
                raise InputError(f"{file}: has two columns of one name: {columns}; rename one")
            yield from batch.to_pylist()
