"""Splits that a data set names itself: train, validation and test, in names of files and folders.

`split_of` reads a name. What is called train is trained on and nothing else; what is called test
is held out, or what is called validation, where there is no test (beside one it is the split
"val"). No picture that is trained on is evaluated: such questions are left out and counted.

Next: data/rows.py, data/labelled.py, data/coco.py, which fill `Example.split`.
"""

import os
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from data.examples import shuffle
from data.paths import named
from runtime.errors import InputError

T = TypeVar("T")
NAMES = {  # how the field calls them; the letters of "train2017" and "testA" count
    "train": "train training trainval",
    "val": "val valid validation dev development minival eval",
    "test": "test testing testa testb testdev",
}
MEANING = {word: split for split, words in NAMES.items() for word in words.split()}


def split_of(name: str) -> str:
    """ "train", "val" or "test" if a word of the name says so and no other contradicts; else ""."""
    words = re.findall("[a-z]+", name.lower())
    found = {MEANING[word] for word in words if word in MEANING}
    return found.pop() if len(found) == 1 else ""


def split_of_path(path: Path, root: Path) -> str:
    """The split that a file below `root` belongs to: by its name, else by the nearest folder's."""
    parts = path.relative_to(root).with_suffix("").parts
    return next((split for part in parts[::-1] if (split := split_of(part))), "")


def is_split_folder(name: str) -> bool:
    """Whether a folder's whole name is that of a split ("train2017", too)."""
    return re.sub("[^a-z]", "", name.lower()) in MEANING


def has_splits(splits: Iterable[str], data: str = "") -> bool:
    """Whether there is something called train and something to evaluate on.

    Otherwise all is split here; where that trains on what is called something else, the name of the
    data is given and a warning printed.
    """
    names = set(splits) - {""}
    if "train" in names and len(names) > 1:
        return True
    if data and names - {"train"}:
        what = f"only {' and '.join(sorted(names))}, no train; its rows are split here"
        print(f"warning: {named(data)} holds {what}, and a part of them is trained on")
    return False


def divide(
    items: Sequence[T], split: Callable[[T], str], picture: Callable[[T], Hashable], data: str
) -> tuple[list[T], dict[str, list[T]]]:
    """Items by the names of their splits: (train, {"held_out": .., "val": ..}), with one line.

    Items of no named split are left out and counted, and so are those to evaluate whose picture is
    trained on. Raises InputError if none is left to evaluate.
    """
    parts = {name: [item for item in items if split(item) == name] for name in NAMES}
    roles = {"held_out": "test" if parts["test"] else "val"}
    if parts["test"] and parts["val"]:
        roles["val"] = "val"
    pictures = {picture(item) for item in parts["train"]}
    evaluated, texts = {}, [f"trained on 'train' ({len(parts['train'])})"]
    for role, name in roles.items():
        evaluated[role] = [item for item in parts[name] if picture(item) not in pictures]
        twice = len(parts[name]) - len(evaluated[role])
        what = "evaluated on" if role == "held_out" else "kept for evaluate.py --split val"
        texts.append(
            f"{what} {name!r} ({len(evaluated[role])}"
            + (f", {twice} left out: their pictures are in train)" if twice else ")")
        )
        if not evaluated[role]:
            what = f"no picture of {name!r} is left that is not trained on as well"
            raise InputError(f"--data {named(data)}: {what}; give another split")
    if unnamed := sum(split(item) == "" for item in items):
        texts.append(f"{unnamed} of no split not used")
    print(f"data: splits by name: {', '.join(texts)}")
    return parts["train"], evaluated


def shuffled_by_picture(
    items: Sequence[T], picture: Callable[[T], Hashable], seed: int
) -> list[list[T]]:
    """The items of each picture, the pictures in an order that depends on the seed alone."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(picture(item), []).append(item)
    return shuffle(list(groups.values()), seed)


def say_of_file(path: Path, suffixes: Sequence[str]) -> None:
    """Say what the name of a single file means: it is split here, whatever it is called."""
    if not os.path.isfile(path):
        return
    own, beside = split_of(path.stem), []
    if own:
        with suppress(OSError):  # a folder that may not be listed
            beside = [p for p in sorted(path.parent.iterdir()) if p.suffix.lower() in suffixes]
    names = [p.name for p in beside if p != path and split_of(p.stem) not in ("", own)]
    if own and own != "train":
        print(f"warning: {path.name!r} is named a {own} split, and a part of it is trained on")
    if names:
        what = f"{names[0]!r} lies beside {path.name!r}" + (f" ({len(names)})" * (len(names) > 1))
        print(f"data: {what} and is not read; name their folder to use both")
