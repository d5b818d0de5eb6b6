"""Pictures of a data set, each opened once at the start: its size, its fingerprints, or its fault.

    seen = look("photos/rose.jpg")         # decoded here, and remembered until the file changes
    examples = readable(examples, skips)   # all pictures of a set, in threads, with a progress bar

A picture is a path, the encoded bytes of a table's cell, or an image in memory. Nothing decoded is
kept: a picture is decoded again when it is used, by `model.image.load_image`.
"""

import hashlib
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from data.box_formats import Size
from data.examples import Example, Picture
from data.files import SkipLog
from model.image import load_image
from runtime.errors import InputError

THREADS = min(8, os.cpu_count() or 1)  # each holds one decoded picture
SECONDS_BEFORE_A_BAR = 2.0
MANY = 1000  # pictures: without a terminal, too, a line says what takes its time


class Seen(NamedTuple):
    """What is remembered of a picture.

    size: (width, height), upright. pixels, content: SHA-256 of its pixels, and of its file.
    """

    size: Size
    pixels: str
    content: str


_seen: dict[tuple, Seen | str] = {}  # by path and state of the file, or by content; or the fault


def look(picture: Picture) -> Seen:
    """Decode a picture, unless that was done before. Raises InputError with its fault."""
    if isinstance(picture, Image.Image):
        image = load_image(picture)
        return Seen(image.size, _pixels(image), _pixels(image))
    key = _key(picture)
    if key not in _seen:
        try:
            image = load_image(picture)
            _seen[key] = Seen(image.size, _pixels(image), content_hash(picture))
        except InputError as error:
            _seen[key] = str(error)
    if isinstance(fault := _seen[key], str):
        raise InputError(fault)
    return _seen[key]


def size_of(picture: Picture) -> Size:
    """(width, height) of the upright picture, decoded at most once."""
    return load_image(picture).size if isinstance(picture, Image.Image) else look(picture).size


def _key(picture: Path | bytes) -> tuple:
    """Equal for one content: a file that is written anew has another one."""
    if isinstance(picture, bytes):
        return (content_hash(picture),)
    try:
        status = os.stat(picture)
    except (OSError, ValueError):  # ValueError: a null byte
        return (str(picture), None)
    return str(picture), status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _pixels(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def content_hash(picture: Path | bytes) -> str:
    """SHA-256 of a file, or of the bytes of a cell. Raises InputError for a file that is gone."""
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    try:
        with open(picture, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{picture}: cannot be read ({error.strerror})") from None


def look_at_all(pictures: Iterable[Picture]) -> None:
    """Look at pictures in threads; their faults are told by `look`. A bar, if it takes long."""
    distinct = {id(p) if isinstance(p, Image.Image) else p: p for p in pictures}
    files = [picture for picture in distinct.values() if not isinstance(picture, Image.Image)]

    def attempt(picture: Path | bytes) -> None:
        try:
            look(picture)
        except InputError:
            pass  # remembered

    if len(files) >= MANY:
        print(f"data: {len(files)} pictures are decoded once, to find what is damaged", flush=True)
    with ThreadPoolExecutor(THREADS) as pool:
        bar = tqdm(
            pool.map(attempt, files),
            total=len(files),
            desc="data: pictures",
            unit="picture",
            delay=SECONDS_BEFORE_A_BAR,
            disable=None,  # where there is no terminal
            leave=False,
        )
        for _ in bar:
            pass


def readable(examples: list[Example], skips: SkipLog) -> list[Example]:
    """The examples whose pictures can all be decoded; the others are counted as "unreadable"."""
    look_at_all(picture for example in examples for picture in example.images)
    kept = []
    for example in examples:
        try:
            for picture in example.images:
                look(picture)
            kept.append(example)
        except InputError as error:
            skips.add("unreadable", f"{example.id!r}: {error}")
    return kept


def pixel_hash(example: Example) -> str:
    """A fingerprint of the pixels of its pictures, in whatever files they are."""
    hashes = [look(picture).pixels for picture in example.images]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def stored_size(picture: Picture) -> Size:
    """(width, height) of a picture before its EXIF orientation is applied."""
    if isinstance(picture, Image.Image):
        return picture.size
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as image:
        return image.size


def why_other_size(picture: Picture, size: Size) -> str:
    """What to say where the stored picture, but not the upright one, has this size; else ""."""
    if look(picture).size == size or stored_size(picture) != size:
        return ""
    return (
        "; its EXIF orientation turns it: boxes refer to the upright picture, the data to the "
        "stored one; save the pictures upright, or annotate them anew"
    )
