"""Labelled images for classification: class folders, rows of any schema, scikit-learn's digits.

    items = load_labelled("my_photos/")          # or "digits", or a table, a .json, a .jsonl
    train, held_out = few_shot_split(items, shots=4, seed=0)

Data comes from outside, so every bad record has one documented outcome. What makes the whole set
doubtful (a path that leaves the folder, two folders with one name) raises `InputError` before any
weight changes. What spoils one record (a broken image, an empty solution) is skipped and counted
in a `SkipLog`. Rows such as those of Visual-RFT (arXiv:2503.01785, hub sets `laolao77/ViRFT_CLS_*`)
are read by data/rows.py; here their solution is taken for a class name.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
from PIL import Image

from answers import MAX_NAME_CHARS, normalise_name
from data.files import MAX_SKIP, SkipLog, check_files, inside, local_path, optional_import
from data.rows import ACCEPTED_ROWS, columns_of, is_row_source, read_records
from model.image import load_image
from runtime.errors import InputError

IMAGE_SUFFIXES = ".jpg .jpeg .png .webp .gif .bmp .tif .tiff .ppm .avif".split()
# Pictures that `load_image` refuses by name: listed, so that they are counted and not overlooked.
FOREIGN_SUFFIXES = ".heic .heif .svg .pdf .eps".split()
DIGIT_NAMES = "zero one two three four five six seven eight nine".split()
ACCEPTED = 'accepted: "digits", a folder with one sub-folder of images per class, ' + ACCEPTED_ROWS


class Labelled(Protocol):
    """What `few_shot_split` asks of an item: a unique id, a class, and one image to compare."""

    id: str
    label: str
    image: Image.Image | Path


Item = TypeVar("Item", bound=Labelled)


@dataclass(frozen=True)
class LabelledImage:
    """One image and its class name; `question` only where the data set brings its own prompt."""

    id: str
    image: Image.Image | Path
    label: str
    question: str | None = None


def load_labelled(
    data: str, max_skip: float = MAX_SKIP, data_root: Path | None = None
) -> list[LabelledImage]:
    """Read what `--data` names; print the schema that matched and how many records were skipped.

    "digits" always means the scans of scikit-learn (a folder of that name is "./digits"). Every
    image is opened once, so that a broken one is met now and not hours into training.

    Raises:
        InputError: any other source, an empty set, one class only, or too many skipped records.
    """
    skips = SkipLog()
    if data == "digits":
        schema, items = "scikit-learn digits, RL half", keep_readable(read_digits("rl"), skips)
    else:
        path = local_path(data, ACCEPTED)
        if is_row_source(path):
            schema, items = read_labelled_records(path, skips, data_root)
            schema = columns_of(schema)
        elif path.is_dir():
            schema, items = "folder of class folders", keep_readable(read_image_folder(path), skips)
        else:
            what = f"a file of type {path.suffix!r}" if path.is_file() else "not a regular file"
            raise InputError(f"--data {data!r} is {what}; {ACCEPTED}")
    skips.check(len(items) + skips.counts.total(), max_skip)
    classes = {normalise_name(item.label): item.label for item in items}
    _check_classes(classes.values(), data)
    print(f"data: {data!r} read as {schema}: {len(items)} images of {len(classes)} classes")
    return items


def keep_readable(items: list[LabelledImage], skips: SkipLog) -> list[LabelledImage]:
    """Return the items whose image `load_image` accepts; count the others as "unreadable"."""
    readable = []
    for item in items:
        try:
            load_image(item.image)
            readable.append(item)
        except InputError as error:
            skips.add("unreadable", f"{item.id!r}: {error}")
    return readable


def few_shot_split(
    items: list[Item],
    shots: int,
    seed: int,
    held_out_per_class: int | None = None,
    min_held_out: int = 1,
) -> tuple[list[Item], list[Item]]:
    """Split into exactly `shots` training images per class and a held-out rest, capped if asked.

    Each class is shuffled once; shots come from the front, held-out images from the back. So fewer
    shots are a subset of more shots, and both are judged on the same images while the cap leaves
    room. A held-out image with the pixels of a training image, under whatever label, is dropped
    and counted: to know it by heart is no generalisation.

    Raises:
        InputError: a flag out of range, or a class with fewer than shots + min_held_out images.
    """
    if shots < 1 or min_held_out < 1 or not 0 <= seed < 2**64:
        bad = f"--shots {shots}, min_held_out {min_held_out}, --seed {seed}"
        raise InputError(f"{bad}: the first two must be at least 1, the seed in [0, 2**64)")
    if held_out_per_class is not None and held_out_per_class < min_held_out:
        raise InputError(f"held_out_per_class {held_out_per_class} must be >= {min_held_out}")
    classes = _shuffled_classes(items, seed)
    needed = shots + min_held_out
    if small := [f"{name!r} has {len(m)}" for name, m in classes.items() if len(m) < needed]:
        raise InputError(
            f"--shots {shots} needs {needed} images in every class ({min_held_out} held out), but "
            f"{', '.join(small[:10])} ({len(small)} classes); lower --shots or add images"
        )
    train = [item for members in classes.values() for item in members[:shots]]
    trained_on = {_pixel_hash(item) for item in train}
    held_out, n_overlap = [], 0
    for name, members in classes.items():
        kept = []
        for item in reversed(members[shots:]):
            if len(kept) == held_out_per_class:
                break
            if _pixel_hash(item) in trained_on:
                n_overlap += 1
            else:
                kept.append(item)
        if len(kept) < min_held_out:
            raise InputError(
                f"class {name!r} keeps {len(kept)} held-out images that differ from all training "
                f"images, {min_held_out} needed; lower --shots or add images"
            )
        held_out += kept
    if n_overlap:
        print(f"data: {n_overlap} held-out images dropped: their pixels equal a training image's")
    return train, held_out


def _shuffled_classes(items: list[Item], seed: int) -> dict[str, list[Item]]:
    """Group by normalised name, in order of the names, each class in its own random order.

    Class k is sorted by the raw 64-bit output of Philox under the key (seed, k): numpy promises
    never to change raw streams, while `permutation` may differ in another version.
    """
    classes = defaultdict(list)
    for item in sorted(items, key=lambda item: item.id):
        classes[normalise_name(item.label)].append(item)
    for k, name in enumerate(sorted(classes)):
        bits = np.random.Philox(key=np.array([seed, k], dtype=np.uint64))
        order = np.argsort(bits.random_raw(len(classes[name])), kind="stable")
        classes[name] = [classes[name][i] for i in order]
    return dict(sorted(classes.items()))


def _pixel_hash(item: Labelled) -> str:
    image = load_image(item.image)
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def read_image_folder(root: Path) -> list[LabelledImage]:
    """Read `root/<class name>/<image>`: one sub-folder per class, its name as it is the label.

    Read are the files directly inside whose suffix, in any case, is in IMAGE_SUFFIXES (or in
    FOREIGN_SUFFIXES, for `keep_readable` to refuse). Other files, hidden ones and deeper folders
    are no part of the set.

    Raises:
        InputError: fewer than two class folders, one without images, two whose names count as the
            same answer, an image that is not a regular file or lies outside `root` (by a link).
    """
    visible = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    folders = [path for path in visible if path.is_dir()]
    if not folders:
        found = [path.name for path in visible[:5]] or "nothing"
        raise InputError(f"--data {str(root)!r} has no class folders, only {found}; {ACCEPTED}")
    _check_classes([folder.name for folder in folders], str(root))
    items = []
    for folder in folders:
        names = [f"{folder.name}/{p.name}" for p in sorted(folder.iterdir()) if p.name[0] != "."]
        names = [n for n in names if Path(n).suffix.lower() in IMAGE_SUFFIXES + FOREIGN_SUFFIXES]
        if not names:
            raise InputError(
                f"--data {str(root)!r}: class folder {folder.name!r} has no images directly inside "
                f"({' '.join(IMAGE_SUFFIXES)}); remove it, or name the folder of the class folders"
            )
        items += [LabelledImage(name, inside(root, name, name), folder.name) for name in names]
    check_files((item.id, item.image) for item in items)
    return items


def _check_classes(labels: Iterable[str], source: str) -> None:
    """Raise unless these are two or more labels that differ after `normalise_name`."""
    spelling: dict[str, str] = {}
    for label in sorted(labels):
        name = normalise_name(label)
        if not name or len(label) > MAX_NAME_CHARS:
            raise InputError(f"--data {source!r}: {label[:80]!r} cannot be a class name; rename it")
        if name in spelling:
            pair = f"{spelling[name]!r} and {label!r}"
            raise InputError(f"--data {source!r}: {pair} are the same answer; rename one")
        spelling[name] = label
    if len(spelling) < 2:
        only = f"only one class, {list(spelling.values())}" if spelling else "no class"
        raise InputError(f"--data {source!r} has {only}: rewards would be constant; add classes")


def read_digits(split: Literal["pretrain", "rl"]) -> list[LabelledImage]:
    """Read scikit-learn's 1797 handwritten digits: 8x8 scans, bright on black, as RGB images.

    The split is by index in `load_digits`: even indices ("pretrain", 899 scans) may be seen by the
    embedded base model; odd ones ("rl", 898) are for the shots and the held-out set of RL.
    """
    parity = {"pretrain": 0, "rl": 1}[split]
    scans = optional_import("sklearn.datasets", "scikit-learn").load_digits()
    items = []
    for index in range(parity, len(scans.target), 2):
        gray = np.rint(scans.images[index] * 255 / 16).astype(np.uint8)  # (8, 8), from 0..16
        image = Image.fromarray(gray).convert("RGB")
        items.append(LabelledImage(f"digits/{index}", image, DIGIT_NAMES[scans.target[index]]))
    return items


def read_labelled_records(
    path: Path, skips: SkipLog, data_root: Path | None = None
) -> tuple[str, list[LabelledImage]]:
    """Read rows of one image, a question and a class name; return their schema as well.

    What counts as a row, and what happens to bad ones, says data/rows.py. Rows whose solution
    has no letter, digit or other sign of a name are skipped and counted.

    Raises:
        InputError: what `read_records` raises, several images in a row, boxes for solutions.
    """
    schema, records = read_records(path, skips, data_root)
    items = []
    for record in records:
        if len(record.images) != 1:
            raise InputError(f"{record.id}: has {len(record.images)} images; a class needs one")
        if record.solution.startswith(("[", "{")):
            raise InputError(f"{record.id}: the solution is a box list, no class name; see --task")
        if normalise_name(record.solution[:MAX_NAME_CHARS]):
            item = LabelledImage(record.id, record.images[0], record.solution, record.question)
            items.append(item)
        else:
            skips.add("solution is no name", record.id)
    return schema, items
