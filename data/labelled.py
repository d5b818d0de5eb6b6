"""Labelled images for classification: class folders, rows of any schema, scikit-learn's digits.

    items = load_labelled("my_photos/")          # or "digits", or a table, a .json, a .jsonl
    train, held_out = few_shot_split(items, shots=4, seed=0)

Rows such as those of Visual-RFT (arXiv:2503.01785, hub sets `laolao77/ViRFT_CLS_*`) are read by
data/rows.py; here their solution is the class name. Bad records are treated as described there.
"""

from collections import defaultdict
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from answers import MAX_NAME_CHARS, normalise_name
from data.examples import Example, pixel_hash, shuffle
from data.files import MAX_SKIP, SkipLog, check_files, check_names, inside, optional_import
from data.rows import ACCEPTED_ROWS, columns_of, is_row_source, read_records
from model.image import load_image
from runtime.errors import InputError

IMAGE_SUFFIXES = ".jpg .jpeg .png .webp .gif .bmp .tif .tiff .ppm .avif".split()
# Pictures that `load_image` refuses by name: listed, so that they are counted and not ignored.
FOREIGN_SUFFIXES = ".heic .heif .svg .pdf .eps".split()
DIGIT_PROMPT, ANY_PROMPT = "Which digit is this?", "Which class does this image show?"
DIGIT_NAMES = "zero one two three four five six seven eight nine".split()
ACCEPTED = ACCEPTED_ROWS + ', a folder with one sub-folder of images per class, "digits"'


def load_labelled(
    data: str, max_skip: float = MAX_SKIP, data_root: Path | None = None
) -> list[Example]:
    """Read what `--data` names; print the schema that matched and how many records were skipped.

    The target of an example is its class name. "digits" always means the scans of scikit-learn (a
    folder of that name is "./digits").

    Raises:
        InputError: any other source, an empty set, one class only, or too many skipped records.
    """
    skips = SkipLog()
    if data == "digits":
        schema, items = "scikit-learn digits, RL half", readable(read_digits("rl"), skips)
    elif Path(data).is_dir() and not is_row_source(Path(data)):
        schema = "folder of class folders"
        items = readable(read_image_folder(Path(data)), skips)
    else:
        schema, items = read_labelled_rows(data, skips, data_root)
    skips.check(len(items) + skips.counts.total(), max_skip)
    classes = {normalise_name(item.target): item.target for item in items}
    check_names(classes.values(), f"--data {data!r}")
    if len(classes) < 2:
        only = f"only one class, {[*classes.values()]}" if classes else "no class"
        raise InputError(f"--data {data!r} has {only}: rewards would be constant; add classes")
    print(f"data: {data!r} read as {schema}: {len(items)} images of {len(classes)} classes")
    return items


def readable(items: list[Example], skips: SkipLog) -> list[Example]:
    """Return the items whose image `load_image` accepts; count the others as "unreadable"."""
    return skips.readable(items, lambda item: load_image(item.images[0]).size)


def few_shot_split(
    items: list[Example], shots: int, seed: int, held_out_per_class: int | None = None
) -> tuple[list[Example], list[Example]]:
    """Split into exactly `shots` training images per class and a held-out rest, capped if asked.

    Each class is shuffled once; shots come from the front, held-out images from the back. So fewer
    shots are a subset of more shots, and both are evaluated on the same images while the cap leaves
    room. A held-out image with the pixels of a training image is dropped and counted.

    Raises:
        InputError: a class with fewer than shots + 1 images, or without a held-out one.
    """
    classes = defaultdict(list)
    for item in sorted(items, key=lambda item: item.id):
        classes[normalise_name(item.target)].append(item)
    classes = {name: shuffle(classes[name], seed, k) for k, name in enumerate(sorted(classes))}
    if small := [f"{name!r} has {len(m)}" for name, m in classes.items() if len(m) <= shots]:
        raise InputError(
            f"--shots {shots} needs {shots + 1} images in every class (1 held out), but "
            f"{', '.join(small[:10])} ({len(small)} classes); lower --shots or add images"
        )
    train = [item for members in classes.values() for item in members[:shots]]
    train_hashes = {pixel_hash(item) for item in train}
    held_out, n_overlap = [], 0
    for name, members in classes.items():
        class_images = []
        for item in reversed(members[shots:]):
            if len(class_images) == held_out_per_class:
                break
            if pixel_hash(item) in train_hashes:
                n_overlap += 1
            else:
                class_images.append(item)
        if not class_images:
            raise InputError(
                f"class {name!r} has no held-out image that differs from all training images; "
                "lower --shots or add images"
            )
        held_out += class_images
    if n_overlap:
        print(f"data: {n_overlap} held-out images dropped: their pixels equal a training image's")
    return train, held_out


def read_image_folder(root: Path) -> list[Example]:
    """Read `root/<class name>/<image>`: one sub-folder per class, its name is the label.

    The images are the files directly inside whose suffix, in any case, is in IMAGE_SUFFIXES (or in
    FOREIGN_SUFFIXES, for `readable` to refuse). Hidden files and deeper folders are ignored.

    Raises:
        InputError: no class folder, one without images, two whose names count as the same answer,
            an image that is not a regular file or lies outside `root` (by a link).
    """
    visible = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    folders = [path for path in visible if path.is_dir()]
    if not folders:
        names = [path.name for path in visible[:5]] or "nothing"
        raise InputError(f"--data {str(root)!r} has no class folders, only {names}; {ACCEPTED}")
    check_names([folder.name for folder in folders], f"--data {str(root)!r}")
    items = []
    for folder in folders:
        names = [f"{folder.name}/{p.name}" for p in sorted(folder.iterdir()) if p.name[0] != "."]
        names = [n for n in names if Path(n).suffix.lower() in IMAGE_SUFFIXES + FOREIGN_SUFFIXES]
        if not names:
            raise InputError(
                f"--data {str(root)!r}: class folder {folder.name!r} has no images directly inside "
                f"({' '.join(IMAGE_SUFFIXES)}); remove it, or name the folder of the class folders"
            )
        paths = [inside(root, name, name) for name in names]
        pairs = zip(names, paths, strict=True)
        items += [Example(name, (path,), ANY_PROMPT, folder.name) for name, path in pairs]
    check_files((item.id, item.images[0]) for item in items)
    return items


def read_digits(split: Literal["pretrain", "rl"]) -> list[Example]:
    """Read scikit-learn's 1797 handwritten digits: 8x8 scans, bright on black, as RGB images.

    The split is by index in `load_digits`: even indices ("pretrain", 899 scans) are for the bundled
    base model; odd ones ("rl", 898) are for the shots and the held-out set of RL.
    """
    parity = {"pretrain": 0, "rl": 1}[split]
    scans = optional_import("sklearn.datasets", "scikit-learn").load_digits()
    items = []
    for index in range(parity, len(scans.target), 2):
        gray = np.rint(scans.images[index] * 255 / 16).astype(np.uint8)  # (8, 8), from 0..16
        image = Image.fromarray(gray).convert("RGB")
        name = DIGIT_NAMES[scans.target[index]]
        items.append(Example(f"digits/{index}", (image,), DIGIT_PROMPT, name))
    return items


def read_labelled_rows(
    data: str, skips: SkipLog, data_root: Path | None = None
) -> tuple[str, list[Example]]:
    """Read rows (data/rows.py) with one image and a class name; return their schema as well.

    Rows whose solution has no letter, digit or other sign of a name are skipped and counted.
    """
    schema, examples = read_records(data, skips, data_root, ACCEPTED)
    items = []
    for e in examples:
        if len(e.images) != 1:
            raise InputError(f"{e.id}: has {len(e.images)} images; a class needs one")
        if e.target.startswith(("[", "{")):
            raise InputError(f"{e.id}: the solution is a box list, no class name; see --task")
        if normalise_name(e.target[:MAX_NAME_CHARS]):
            items.append(e)
        else:
            skips.add("solution is no name", e.id)
    return columns_of(schema), items
