"""Names of files that a data set gives: where they lie, what is refused, and why one is missing.

A name may not lead out of the folder of its data set. A picture that is not there is an error that
says what is likely: another case, a name in URL encoding, pictures in another folder.

Next: data/files.py.
"""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from runtime.errors import InputError

MAX_SHOWN = 80  # characters of a value in a message
FOLDERS_LOOKED_AT = 200  # in search of a missing picture


def shown(value: object, limit: int = MAX_SHOWN) -> str:
    """A value for a message, cut before what follows it: repr of at most `limit` characters."""
    text = repr(value[: limit + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= limit + 2 else f"{text[:limit]}..."


def named(path: Path | str) -> str:
    """A path for a message, whole where it can be."""
    return shown(str(path), 200)


def local_path(data: str, accepted: str) -> Path:
    """Return what `--data` names; raise InputError for URLs and for what does not exist."""
    path = Path(data)
    if is_url(data):
        raise InputError(f"--data {named(data)} is a URL; download the data set, name its folder")
    if "\0" in data or not os.path.exists(path):
        raise InputError(f"--data {named(data)} does not exist{similar_name(path)}; {accepted}")
    return path


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, hidden files aside, sorted; InputError for one that cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        why = f"cannot be read ({error.strerror}); check its rights"
        raise InputError(f"--data: the folder {named(folder)} {why}") from None


def is_url(name: str) -> bool:
    """Whether a name is a URL of any scheme that data sets carry."""
    return "://" in name or name.lower().startswith(("data:", "file:", "http:", "https:"))


def _is_base64(name: str) -> bool:
    """Whether it looks like the content of a picture: JPEG, PNG, GIF or WEBP in base64."""
    starts = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
    return len(name) >= 100 and name.startswith(starts) and not re.search(r"[^\w+/=\s-]", name)


def inside(root: Path, name: str, where: str) -> Path:
    """Return `root / name`, refusing URLs, `..`, absolute paths and links that lead out of root.

    Backslashes of Windows are read as slashes where no file has the name as it stands.
    """
    if name[:11].lower() == "data:image/" or _is_base64(name):
        what = f"{shown(name, 40)} is a picture in base64, which is not read here"
        raise InputError(f"{where}: {what}; save it as a file, or as bytes in a parquet table")
    if is_url(name) or "\0" in name:
        what = f"{shown(name)} is {'a URL' if is_url(name) else 'no name'}, no path below"
        raise InputError(f"{where}: {what} {named(root)}; download or copy the file there")
    path = root / name
    try:
        if "\\" in name and not os.path.lexists(path):
            path = root / name.replace("\\", "/")
        target = Path(os.path.realpath(path))
    except UnicodeEncodeError as error:
        fix = "is no file name in this locale; repair it, or set PYTHONUTF8=1"
        raise InputError(f"{where}: {shown(name)} {fix}") from error
    except OSError as error:  # a name of thousands of characters
        raise InputError(f"{where}: {shown(name)} is no file name ({error.strerror})") from error
    if not target.is_relative_to(os.path.realpath(root)):
        what = f"{shown(name)} leads out of {named(root)}"
        raise InputError(f"{where}: {what}; copy the file there, or name the folder: --data_root")
    return path


def check_files(images: Iterable[tuple[str, Path]], root: Path | None = None) -> None:
    """Raise InputError, naming the first five, if images of (record, path) are no regular files.

    Args:
        root: the folder that their names are relative to; they are searched in those beside it.
    """
    images = list(images)
    if strange := [name for name, _ in images if not name.isprintable()]:
        raise InputError(f"--data: {shown(strange[0])} is no printable name; rename it")
    regular = {path: os.path.isfile(path) for path in dict.fromkeys(path for _, path in images)}
    if missing := [(name, path) for name, path in images if not regular[path]]:
        first = "; ".join(f"{n}: {named(p)}{why_missing(p)}" for n, p in missing[:5])
        found = where_they_are([path for _, path in missing], root) if root is not None else ""
        what = f"{len(missing)} images missing or no regular files{found}"
        raise InputError(f"--data: {what}: {first}")


def why_missing(path: Path) -> str:
    """What is likely the matter with a name, for a message; "" where nothing is known."""
    if re.search(r"(?:^|/)[A-Za-z]:(?:/|$)", path.as_posix()) or "\\" in str(path):
        return " (a path of Windows; names are relative to the folder, with slashes)"
    decoded = Path(unquote(str(path)))
    if decoded != path and os.path.isfile(decoded):
        return f" (it is in URL encoding; the file is {shown(decoded.name)}: decode the names)"
    return similar_name(path)


def where_they_are(missing: list[Path], root: Path) -> str:
    """What to say if all missing pictures are in one other folder: give it as --data_root."""
    real = Path(os.path.realpath(root))
    below, around = _below(_below([real])), _below(_below([real.parent]))
    wanted = [os.path.relpath(path, root) for path in missing]
    for folder in dict.fromkeys((*below, *around)):
        if folder != real and all(os.path.isfile(folder / name) for name in wanted):
            return f" (they are in {named(folder)}: give --data_root {folder})"
    last = [PurePosixPath(name).name for name in wanted]
    for folder in below if wanted != last else []:
        if all(os.path.isfile(folder / name) for name in last):
            what = "files of these names, without the folders in front, are in"
            return f" ({what} {named(folder)}: shorten the names, or move the files)"
    return ""


def _below(folders: list[Path]) -> list[Path]:
    """The folders, with those directly in them behind."""
    inner = []
    for folder in folders[:FOLDERS_LOOKED_AT]:
        try:
            inner += sorted(p for p in folder.iterdir() if os.path.isdir(p) and p.name[0] != ".")
        except OSError:
            continue
    return folders + inner


def similar_name(path: Path) -> str:
    """Return a hint if a neighbour differs only in case or in its Unicode form, else ""."""
    if "\0" in str(path) or not os.path.isdir(path.parent):
        return ""
    try:
        siblings = sorted(os.listdir(path.parent))
    except OSError:
        return ""
    folded = [unicodedata.normalize("NFC", name).casefold() for name in [path.name, *siblings]]
    similar = [name for name, key in zip(siblings, folded[1:], strict=True) if key == folded[0]]
    return f" (did you mean {similar[0]!r}?)" if similar and path.name not in similar else ""
