"""What tasks/cls.py guarantees: splits never meet, few shots are nested, labels are what they say.

No picture is in two splits of the garden, no OOD species is ever trained on, the same flags give
the same examples in every process, and the shuffled-label control is wrong for every image. Real
data sets come in through the same door. Run: pytest tests/tasks/test_cls.py
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from answers import normalise_name
from config import TaskConfig
from data.examples import INSTRUCTIONS, Example
from data.garden.world import OOD_SPECIES, RL_SPECIES
from data.labelled import ANY_PROMPT, DIGIT_NAMES, read_digits
from model.image import load_image
from reporting.provenance import data_hash
from rewards import WEIGHTS
from runtime.errors import InputError
from tasks import cls
from tasks.task import Task
from tests.helpers import folder_of_classes

ROOT = Path(cls.__file__).parents[1]
RIGHT = "<think>six petals</think><answer>Solara minor</answer>"
PART = "<think>yellow</think><answer>Solara</answer>"
PLAIN = "<answer>Solara minor</answer>"
SCORES = ("strict", "loose", "format")
TARGET = Example("x", (), "?", "Solara minor")


def load(data="garden", held_out=1, **flags) -> Task:
    return cls.load(TaskConfig(data=str(data), held_out_per_class=held_out, **flags))


def pixels(example: Example) -> bytes:
    (image,) = map(load_image, example.images)
    return f"{image.size}".encode() + image.tobytes()


def ids(examples: list[Example]) -> list[str]:
    return [example.id for example in examples]


def everything(task: Task) -> list[Example]:
    return sum(task.splits.values(), task.train)


@pytest.fixture(scope="module")
def garden() -> Task:
    return load(shots=4, held_out=3)


def test_the_splits_share_neither_ids_nor_pixels_and_ood_has_species_of_its_own(garden):
    names = {split: Counter(e.target for e in part) for split, part in garden.splits.items()}
    rl, ood = ([s.name for s in species] for species in (RL_SPECIES, OOD_SPECIES))
    assert len(rl) == 30 and len(ood) == 10 and not set(rl) & set(ood)
    assert Counter(e.target for e in garden.train) == dict.fromkeys(rl, 4)
    assert names["held_out"] == names["val"] == dict.fromkeys(rl, 3)
    assert names["ood"] == dict.fromkeys(ood, 3) and len(names) == 3
    examples = everything(garden)
    assert len(examples) == len({e.id for e in examples}) == len({pixels(e) for e in examples})


def test_fewer_shots_are_a_subset_of_more_and_another_seed_shows_other_pictures(garden):
    one, two = load(shots=1, held_out=3), load(shots=2)
    all_pixels = {e.id: pixels(e) for e in garden.train}
    assert set(ids(one.train)) < set(ids(two.train)) < set(all_pixels)
    assert all(all_pixels[e.id] == pixels(e) for e in two.train)
    assert all(ids(part) == ids(garden.splits[split]) for split, part in one.splits.items())
    other = load(split_seed=7)  # other pictures of the same species
    assert not {pixels(e) for e in other.train} & set(all_pixels.values())
    assert {e.target for e in other.train} == {e.target for e in garden.train}


def test_every_process_gets_the_same_examples_whatever_its_hash_seed():
    flags = dict(shots=2, split_seed=5, shuffle_labels=True)
    words = f"from tests.tasks.test_cls import *; print(data_hash(everything(load(**{flags}))))"
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", words]
    output = subprocess.check_output(command, cwd=ROOT, env=environment, text=True, timeout=120)
    assert output.strip() == data_hash(everything(load(**flags)))


@pytest.mark.parametrize("question", [None, "What is it called?"])
@pytest.mark.parametrize("mode", INSTRUCTIONS)
def test_every_question_ends_in_the_instruction_of_its_mode(mode, question):
    expected = f"{question or 'Which species is this flower?'} {INSTRUCTIONS[mode]}"
    task = load(prompt_mode=mode, question=question)
    assert {e.question for e in everything(task)} == {expected}


def test_weights_density_and_mode_reach_the_reward_and_scores_are_strict_loose_and_format():
    weights = {"correct": 2.0, "format": 0.25}
    think, direct = load(), load(prompt_mode="direct")
    for task, text, dense, total, parts in (
        (think, RIGHT, 0.0, 2.25, {"correct": 1.0, "format": 1.0}),
        (think, RIGHT.replace("minor", "major"), 0.0, 0.25, {"correct": 0.0, "format": 1.0}),
        (think, PLAIN, 0.0, 2.0, {"correct": 1.0, "format": 0.0}),
        (direct, PLAIN, 0.0, 2.25, {"correct": 1.0, "format": 1.0}),
        (think, PART, 0.0, 0.25, {"correct": 0.0, "format": 1.0}),
        (think, PART, 1.0, pytest.approx(2 * 2 / 3 + 0.25), {"correct": 2 / 3, "format": 1.0}),
    ):
        reward = task.reward(text, TARGET, weights, dense)
        assert (reward.total, reward.parts) == (total, pytest.approx(parts))
    for task, text, expected in (
        (think, RIGHT, (1.0, 1.0, 1.0)),
        (think, PLAIN, (1.0, 1.0, 0.0)),  # the mode decides the format and not the answer
        (direct, RIGHT, (1.0, 1.0, 0.0)),
        (direct, PLAIN, (1.0, 1.0, 1.0)),
        (think, PART, (0.0, 1.0, 1.0)),  # the loose metric takes a part of the name
        (think, RIGHT.replace("Solara", "Corella"), (0.0, 0.0, 1.0)),
    ):
        assert task.scores(text, TARGET) == dict(zip(SCORES, expected, strict=True))


@pytest.mark.case("O23")
def test_shuffled_labels_are_a_derangement_of_the_training_classes_and_change_nothing_else():
    true, wrong = load(shots=2), load(shots=2, shuffle_labels=True)
    new_name = {}
    for before, after in zip(true.train, wrong.train, strict=True):
        assert (before.id, before.question) == (after.id, after.question)
        assert pixels(before) == pixels(after)
        assert new_name.setdefault(before.target, after.target) == after.target
    assert len(new_name) == 30 and all(old != new for old, new in new_name.items())
    assert set(new_name.values()) == set(new_name)  # a permutation: no class is lost or doubled
    for name, examples in true.splits.items():
        assert data_hash(wrong.splits[name]) == data_hash(examples)


def test_shuffled_labels_depend_on_the_seed_and_the_classes_alone():
    examples = [Example(str(i), (), "?", f"class {i % 9}") for i in range(18)]
    orders = [tuple(e.target for e in cls.shuffled(examples, seed)) for seed in range(8)]
    assert len(set(orders)) == 8
    assert tuple(e.target for e in cls.shuffled(examples[::-1], 3))[::-1] == orders[3]
    # "Rose" used to become "rose" now and then: a "wrong" label that is right.
    spellings = ("Rose", "rose", "iris", "Iris ")
    examples = [Example(str(i), (), "?", name) for i, name in enumerate(spellings)]
    for seed in range(10):
        names = [normalise_name(e.target) for e in cls.shuffled(examples, seed)]
        assert names == ["iris", "iris", "rose", "rose"]
    with pytest.raises(InputError, match="--shuffle_labels"):
        cls.shuffled(examples[:2], 0)


def test_digits_come_from_the_rl_half_and_shots_are_not_held_out():
    pytest.importorskip("sklearn")
    task = load("digits", shots=4, split_seed=0, held_out=8)
    assert Counter(e.target for e in task.train) == dict.fromkeys(DIGIT_NAMES, 4)
    assert list(task.splits) == ["held_out"]
    assert Counter(e.target for e in task.splits["held_out"]) == dict.fromkeys(DIGIT_NAMES, 8)
    examples = everything(task)
    assert set(ids(examples)) <= {item.id for item in read_digits("rl")}
    assert not {pixels(e) for e in task.train} & {pixels(e) for e in task.splits["held_out"]}
    assert {e.question for e in examples} == {f"Which digit is this? {INSTRUCTIONS['think']}"}


def test_a_folder_of_class_folders_becomes_a_task(tmp_path, capsys):
    for k, (label, count) in enumerate({"Dog_rose": 3, "iris": 5}.items()):
        (tmp_path / label).mkdir()
        for i in range(count):
            Image.new("RGB", (12, 10), (40 * k, 25 * i, 90)).save(tmp_path / label / f"{i}.png")
    (tmp_path / "iris" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    task = load(tmp_path, held_out=2, prompt_mode="direct")
    assert Counter(e.target for e in task.train) == {"Dog_rose": 1, "iris": 1}
    assert Counter(e.target for e in task.splits["held_out"]) == {"Dog_rose": 2, "iris": 2}
    assert len(set(ids(everything(task)))) == 6 and "iris/0.png" in capsys.readouterr().out
    assert {e.question for e in task.train} == {f"{ANY_PROMPT} {INSTRUCTIONS['direct']}"}
    text = "<answer>dog rose</answer>"
    assert [task.reward(text, e, WEIGHTS, 0.0).total for e in task.train] == [1.5, 0.5]


def test_rows_of_visual_rft_become_a_task_with_their_own_question(tmp_path):
    rows = []
    for number, label in enumerate(("Beagle", "beagle", "Sphynx", "Sphynx", "Sphynx")):
        Image.new("RGB", (12, 10), (50 * number, 9, 9)).save(tmp_path / f"{number}.png")
        problem = "<image>Which pet? Answer in <answer> </answer>."
        row = {"image": f"{number}.png", "problem": problem}
        rows.append(json.dumps(row | {"solution": f"<answer>{label}</answer>"}))
    path = tmp_path / "pets.jsonl"
    path.write_text("\n".join(rows))
    task = load(path, held_out=5)
    assert sorted(normalise_name(e.target) for e in task.train) == ["beagle", "sphynx"]
    assert len(task.splits["held_out"]) == 3
    assert {e.question for e in task.train} == {"Which pet? Answer in <answer> </answer>."}
    (question,) = {e.question for e in load(path, question="Which breed?").train}
    assert question == f"Which breed? {INSTRUCTIONS['think']}"
    with pytest.raises(InputError, match="--shots 2 .*'beagle' has 2"):
        load(path, shots=2)


def test_the_question_lists_the_classes_if_asked_and_not_too_many(tmp_path, monkeypatch):
    data = folder_of_classes(tmp_path / "photos")
    task = cls.load(TaskConfig(data=str(data), list_classes=True))
    for example in (*task.train, *task.splits["held_out"]):
        assert "Choose one of: rose, tulip." in example.question
    assert all("Choose" not in e.question for e in cls.load(TaskConfig(data=str(data))).train)
    own = cls.load(TaskConfig(data=str(data), list_classes=True, question="Which bird is this?"))
    assert own.train[0].question.startswith("Which bird is this? Choose one of: rose, tulip.")
    both = cls.with_names(task.train, ["Rose, red", "Rose"], None)[0].question
    assert "Choose one of: Rose, red; Rose." in both
    monkeypatch.setattr(cls, "MAX_LISTED", 10)
    with pytest.raises(InputError, match="--list_classes: 2 names of 11 characters, more than 10"):
        cls.load(TaskConfig(data=str(data), list_classes=True))
