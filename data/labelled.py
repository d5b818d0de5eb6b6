"""Labelled images for classification: class folders, rows of any schema, scikit-learn's digits.

    items = load_labelled("my_photos/")          # or "digits", or a table, a .json, a .jsonl
    train, held_out = few_shot_split(items, shots=4, seed=0)

Rows such as those of Visual-RFT (arXiv:2503.01785, hub sets `laolao77/ViRFT_CLS_*`) are read by
data/rows.py; here their solution is the class name. Bad records are treated as described there.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from answers import MAX_NAME_CHARS, normalise_name
from data.coco import is_coco
from data.examples import Example, shuffle
from data.files import MAX_SKIP, SkipLog, optional_import
from data.labels import check_names, spellings, without_numbers
from data.paths import check_files, entries, inside, named
from data.pictures import pixel_hash, readable
from data.rows import ACCEPTED_ROWS, columns_of, is_row_source, read_records
from data.splits import divide, is_split_folder, say_of_file, split_of
from data.tables import JSON
from runtime.errors import InputError

IMAGE_SUFFIXES = ".jpg .jpeg .jfif .png .webp .gif .bmp .tif .tiff .ppm .avif".split()
# Pictures that `load_image` refuses by name: listed, so that they are counted and not ignored.
FOREIGN_SUFFIXES = ".heic .heif .svg .pdf .eps".split()
_MASK = re.compile(r"[ _-](?:mask|seg|segmentation|label|gt)(?:[ _-]?\d+)?$", re.IGNORECASE)
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
    elif os.path.isdir(data) and not is_row_source(Path(data)):
        if data_root is not None:
            what = "class folders hold their pictures themselves; leave it out"
            raise InputError(f"--data_root {named(data_root)}: {what}")
        if is_coco(data):
            what = "holds COCO instances, which are for --task det or ovd"
            raise InputError(f"--data {named(data)} {what}; --task cls reads class folders")
        schema = "folder of class folders"
        items = readable(read_image_folder(Path(data)), skips)
    else:
        schema, items = read_labelled_rows(data, skips, data_root)
        say_of_file(Path(data), (*JSON, ".parquet"))
    skips.check(len(items) + skips.counts.total(), max_skip)
    classes = spellings(item.target for item in items)
    check_names([names[0] for names in classes.values()], f"--data {named(data)}")
    if merged := [names for names in classes.values() if len(names) > 1]:
        first = " and ".join(map(repr, merged[0][:3]))
        print(f"data: {len(merged)} classes are written in several ways: {first} are one answer")
    names: dict[tuple, set[str]] = {}
    for item in items:
        names.setdefault((pixel_hash(item), item.question), set()).add(normalise_name(item.target))
    if several := [sorted(found) for found in names.values() if len(found) > 1]:
        what = f"{len(several)} pictures are in several classes, one in {several[0][:3]}"
        print(f"warning: {named(data)}: {what}; nothing says which is right")
    if len(classes) < 2:
        only = f"only one class, {[*classes.values()][0][:5]}" if classes else "no class"
        if merged:
            only += " (these spellings are the same answer)"
        raise InputError(f"--data {named(data)} has {only}: rewards would be constant; add classes")
    print(f"data: {named(data)} read as {schema}: {len(items)} images of {len(classes)} classes")
    return items


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
    classes = _by_class(items, seed)
    if small := [f"{name!r} has {len(m)}" for name, m in classes.items() if len(m) <= shots]:
        fix = "lower --shots or add images" if shots > 1 else "add images"
        raise InputError(
            f"--shots {shots} needs {shots + 1} images in every class (1 held out), but "
            f"{', '.join(small[:10])} ({len(small)} classes); {fix}"
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
                + ("lower --shots or add images" if shots > 1 else "add images")
            )
        held_out += class_images
    if n_overlap:
        print(f"data: {n_overlap} held-out images dropped: their pixels equal a training image's")
    return train, held_out


def _by_class(items: list[Example], seed: int) -> dict[str, list[Example]]:
    """The items of each class, in an order that depends on the seed alone."""
    classes: dict[str, list[Example]] = {}
    for item in sorted(items, key=lambda item: item.id):
        classes.setdefault(normalise_name(item.target), []).append(item)
    return {name: shuffle(classes[name], seed, k) for k, name in enumerate(sorted(classes))}


def named_splits(
    items: list[Example], shots: int, seed: int, held_out_per_class: int, data: str
) -> tuple[list[Example], dict[str, list[Example]]]:
    """As `few_shot_split` where the data name their splits (data/splits.py).

    Shots are of what is called train; of the other splits `held_out_per_class` images of the
    classes that are trained on. Raises InputError for a class with fewer shots.
    """
    train, evaluated = divide(items, lambda item: item.split, pixel_hash, data)
    classes = _by_class(train, seed)
    if small := [f"{name!r} has {len(m)}" for name, m in classes.items() if len(m) < shots]:
        what = f"{', '.join(small[:10])} in train ({len(small)} classes)"
        raise InputError(f"--shots {shots}: {what}; lower --shots or add images")
    splits = {}
    for split, part in evaluated.items():
        tested = _by_class(part, seed)
        splits[split] = [i for name in classes for i in tested.get(name, [])[:held_out_per_class]]
        for names, what in (
            (sorted(tested.keys() - classes.keys()), "not in train, and left out"),
            (sorted(classes.keys() - tested.keys()), "in train alone"),
        ):
            if names:
                print(f"data: {split}: {len(names)} classes are {what}: {names[:10]}")
        if not splits[split]:
            raise InputError(f"--data {named(data)}: {split} has no class of train; rename them")
    return [item for members in classes.values() for item in members[:shots]], splits


def read_image_folder(root: Path) -> list[Example]:
    """Read `root/<class name>/<image>`: one sub-folder per class, its name is the label.

    The images are the files whose suffix, in any case, is in IMAGE_SUFFIXES (or FOREIGN_SUFFIXES,
    for `readable` to refuse), those in sub-folders of a class with them; other files are counted.
    Hidden ones are ignored. `root/train/<class name>/<image>`, with test or validation beside it,
    has its splits by name. Numbers that only order the folders are dropped (data/labels.py).

    Raises:
        InputError: no class folder, one without images, two whose names count as the same answer,
            an image that is not a regular file or lies outside `root` (by a link).
    """
    visible = entries(root)
    folders = [path for path in visible if os.path.isdir(path)]
    if not folders:
        only = [path.name for path in visible[:5]] or "nothing"
        files = [path for path in visible if path.suffix.lower() in JSON]
        hint = f"name the file itself: --data {files[0]}" if files else ACCEPTED
        raise InputError(f"--data {named(root)} has no class folders, only {only}; {hint}")
    splits = [path for path in folders if is_split_folder(path.name) and _has_class_folders(path)]
    if {"train"} < {split_of(path.name) for path in splits}:
        parts = [(path, split_of(path.name)) for path in splits]
        if unread := [path.name for path in visible if path not in splits]:
            print(f"data: {len(unread)} entries beside the splits are not read: {unread[:5]}")
    elif len(folders) > 1 and all(is_split_folder(path.name) for path in folders):
        names = [path.name for path in folders]
        raise InputError(
            f"--data {named(root)}: {names} are names of splits, without class folders in "
            "them; give each a folder per class, or a metadata.jsonl; if they are classes, rename"
        )
    else:
        parts = [(root, "")]
    items, skipped = [], Counter()
    for part, split in parts:
        items += _class_folders(part, root, split, skipped)
    if skipped:
        kinds = ", ".join(f"{kind} {count}" for kind, count in skipped.most_common(5))
        print(f"data: {skipped.total()} files are no pictures of a class and not read: {kinds}")
    check_files((item.id, item.images[0]) for item in items)
    return items


def _has_class_folders(folder: Path) -> bool:
    return any(os.path.isdir(path) and _pictures(path, deep=False) for path in entries(folder))


def _pictures(folder: Path, deep: bool = True, others: Counter | None = None) -> list[Path]:
    """Pictures of a class, those of its sub-folders last; `others` counts the rest by suffix."""
    found, folders = [], []
    for path in entries(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES + FOREIGN_SUFFIXES:
            found.append(path)
        elif os.path.isdir(path) and not path.is_symlink():
            folders.append(path)
        elif others is not None:
            others[path.suffix.lower() or "no suffix"] += 1
    for path in folders if deep else []:
        found += _pictures(path, deep, others)
    return found


def _class_folders(folder: Path, root: Path, split: str, skipped: Counter) -> list[Example]:
    """The labelled pictures of one split, or of the whole set."""
    inner = entries(folder)
    folders = [path for path in inner if os.path.isdir(path)]
    skipped.update(path.suffix.lower() or "no suffix" for path in inner if not os.path.isdir(path))
    names = without_numbers([path.name for path in folders])
    check_names(names.values(), f"--data {named(root)}")
    items, masks, n_deeper = [], [], 0
    for path in folders:
        pictures = _pictures(path, others=skipped)
        stems = {picture.stem for picture in pictures}
        masks += [p.name for p in pictures if _MASK.sub("", p.stem) in stems - {p.stem}]
        deeper = sum(picture.parent != path for picture in pictures)
        if len(pictures) == deeper:
            raise InputError(
                f"--data {named(root)}: class folder {path.name!r} has no images directly "
                f"inside ({' '.join(IMAGE_SUFFIXES)}); remove it, or name the folder of the class "
                "folders"
            )
        n_deeper += deeper
        for picture in pictures:
            name = os.path.relpath(picture, root)
            place = (inside(root, name, name),)
            items.append(Example(name, place, ANY_PROMPT, names[path.name], split=split))
    if masks:
        what = f"{len(masks)} pictures are named as masks of others, as {masks[0]!r}"
        print(f"warning: {named(folder)}: {what}, and are read as pictures; move them away")
    if n_deeper:
        print(f"data: {n_deeper} of {len(items)} pictures are in sub-folders of their class")
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
