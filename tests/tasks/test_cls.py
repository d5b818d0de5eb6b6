"""What tasks/cls.py guarantees: splits never meet, few shots are nested, labels are what they say.

No picture is in two splits of the garden, no OOD species is ever trained on, the same flags give
the same examples in every process, and the shuffled-label control is wrong for every image. Real
data sets come in through the same door. Run: pytest tests/tasks/test_cls.py
"""

import hashlib
import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from answers import normalise_name
from data.examples import INSTRUCTIONS, Example, full_question
from data.garden.world import OOD_SPECIES, RL_SPECIES, SPLIT_SEED
from data.labelled import DIGIT_NAMES, read_digits
from runtime.errors import InputError
from tasks import Settings, cls
from tests.data.test_labelled import class_folders, picture

ROOT = Path(cls.__file__).parents[1]
WEIGHTS = {"correct": 1.0, "format": 0.5}
RIGHT = "<think>six petals</think><answer>Solara minor</answer>"


def load(data="garden", shots=1, seed=SPLIT_SEED, held_out=1, mode="think", **more):
    return cls.load(
        Settings(
            data=str(data),
            shots=shots,
            split_seed=seed,
            held_out_per_class=held_out,
            prompt_mode=mode,
            **more,
        )
    )


def named(target: str) -> Example:
    return Example("x", (), "?", target)


def pixels(example: Example) -> bytes:
    (image,) = example.images
    image = image if isinstance(image, Image.Image) else Image.open(image)
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).digest()


def ids(examples: list[Example]) -> list[str]:
    return [example.id for example in examples]


@pytest.fixture(scope="module")
def garden():
    return load(shots=4, held_out=3)


# ---- the garden's splits -------------------------------------------------------------------------


def test_the_four_splits_share_neither_ids_nor_pixels(garden):
    splits = {"train": garden.train} | garden.splits
    assert sorted(splits) == ["held_out", "ood", "train", "val"]
    everything = [example for examples in splits.values() for example in examples]
    assert len(everything) == 30 * 4 + 30 * 3 + 30 * 3 + 10 * 3
    assert len({e.id for e in everything}) == len({pixels(e) for e in everything}) == 330


def test_ood_species_are_in_no_other_split(garden):
    names = {split: {e.target for e in examples} for split, examples in garden.splits.items()}
    rl, ood = {s.name for s in RL_SPECIES}, {s.name for s in OOD_SPECIES}
    assert {e.target for e in garden.train} == names["held_out"] == names["val"] == rl
    assert names["ood"] == ood and not rl & ood


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_every_species_has_exactly_its_shots(shots, monkeypatch):
    monkeypatch.setattr(cls, "draw_flower", lambda flower, seed: Image.new("RGB", (1, 1)))
    task = load(shots=shots)
    assert Counter(e.target for e in task.train) == {s.name: shots for s in RL_SPECIES}
    assert len(set(ids(task.train))) == 30 * shots


def test_fewer_shots_are_a_subset_of_more_and_are_judged_on_the_same_images(garden):
    one, two = load(shots=1, held_out=3), load(shots=2, held_out=1)
    known = {e.id: pixels(e) for e in garden.train}
    assert set(ids(one.train)) < set(ids(two.train)) < set(known)
    assert all(known[e.id] == pixels(e) for e in two.train)
    assert {k: ids(v) for k, v in one.splits.items()} == {
        k: ids(v) for k, v in garden.splits.items()
    }


def test_another_split_seed_shows_other_pictures_of_the_same_species(garden):
    other = load(seed=7)
    assert not {pixels(e) for e in other.train} & {pixels(e) for e in garden.train}
    assert {e.target for e in other.train} == {e.target for e in garden.train}


FINGERPRINT = """
import hashlib
from tasks import Settings, cls
settings = Settings(shots=2, split_seed=5, held_out_per_class=1, shuffle_labels=True)
task = cls.load(settings)
digest = hashlib.sha256()
for name, examples in sorted((task.splits | {"train": task.train}).items()):
    for e in examples:
        digest.update(f"{name}|{e.id}|{e.question}|{e.target}|".encode() + e.images[0].tobytes())
print(digest.hexdigest())
"""


def test_every_process_gets_the_same_examples_whatever_its_hash_seed():
    def fingerprint(hash_seed: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", FINGERPRINT],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout

    assert fingerprint("1") == fingerprint("2") != ""


def test_a_split_seed_out_of_range_is_refused():
    with pytest.raises(InputError, match="seed=-1 is out of range"):
        load(seed=-1)


# ---- questions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", INSTRUCTIONS)
def test_every_question_ends_in_the_instruction_of_its_mode(mode):
    task = load(mode=mode)
    expected = f"Which species is this flower? {INSTRUCTIONS[mode]}"
    splits = [task.train, *task.splits.values()]
    assert {e.question for examples in splits for e in examples} == {expected}


def test_the_question_flag_replaces_the_question_everywhere_and_keeps_the_instruction():
    task = load(question="What is it called?")
    expected = f"What is it called? {INSTRUCTIONS['think']}"
    splits = [task.train, *task.splits.values()]
    assert {e.question for examples in splits for e in examples} == {expected}


def test_a_question_that_says_how_to_answer_is_left_alone():
    asked = (
        "Name the dog. Output the thinking in <think> </think> and the name in <answer> </answer>"
    )
    assert full_question(asked, "think") == full_question(asked, "direct") == asked


# ---- reward and metrics --------------------------------------------------------------------------


def test_the_weights_reach_the_reward():
    task = load(correct_weight=2.0, format_weight=0.25)
    assert task.reward(RIGHT, named("Solara minor"), 0.0).total == 2.25
    assert task.reward(RIGHT, named("Solara major"), 0.0).total == 0.25
    plain = "<answer>Solara minor</answer>"
    assert task.reward(plain, named("Solara minor"), 0.0).total == 2.0
    right = {"correct": 1.0, "format": 1.0}
    assert task.reward(RIGHT, named("Solara minor"), 0.0).parts == right


def test_a_dense_reward_pays_a_part_of_the_name_and_a_sparse_one_does_not():
    task, part = load(), "<think>yellow</think><answer>Solara</answer>"
    sparse, dense = (task.reward(part, named("Solara minor"), d).total for d in (0.0, 1.0))
    assert sparse == 0.5 < dense < 1.5


def test_the_mode_decides_the_format_and_not_the_answer():
    think, direct = load(mode="think"), load(mode="direct")
    plain, target = "<answer>Solara minor</answer>", named("Solara minor")
    assert [think.scores(t, target)["format"] for t in (RIGHT, plain)] == [1.0, 0.0]
    assert [direct.scores(t, target)["format"] for t in (RIGHT, plain)] == [0.0, 1.0]
    for text in (RIGHT, plain):
        assert think.scores(text, target)["strict"] == direct.scores(text, target)["strict"] == 1.0


def test_the_loose_metric_takes_a_part_of_the_name_and_the_strict_one_does_not():
    task, part = load(), "<think>yellow</think><answer>Solara</answer>"

    def strict_and_loose(text, target):
        scores = task.scores(text, named(target))
        return scores["strict"], scores["loose"]

    assert strict_and_loose(part, "Solara minor") == (0.0, 1.0)
    assert task.reward(part, named("Solara minor"), 0.0).parts["correct"] == 0.0
    assert strict_and_loose(RIGHT, "Solara minor") == (1.0, 1.0)
    assert strict_and_loose(RIGHT, "Corella nova") == (0.0, 0.0)


# ---- shuffled labels -----------------------------------------------------------------------------


@pytest.mark.case("O23")
def test_shuffled_labels_are_a_derangement_of_the_classes():
    true, wrong = load(shots=2), load(shots=2, shuffle_labels=True)
    new_name = {}
    for before, after in zip(true.train, wrong.train, strict=True):
        assert new_name.setdefault(before.target, after.target) == after.target
    assert len(new_name) == 30 and all(old != new for old, new in new_name.items())
    assert set(new_name.values()) == set(new_name)  # a permutation: no class is lost or doubled


def test_shuffled_labels_change_the_training_targets_and_nothing_else():
    true, wrong = load(), load(shuffle_labels=True)
    for before, after in zip(true.train, wrong.train, strict=True):
        assert (before.id, before.question) == (after.id, after.question)
        assert pixels(before) == pixels(after)
    for name, examples in true.splits.items():
        judged = wrong.splits[name]
        assert [(e.id, e.target) for e in judged] == [(e.id, e.target) for e in examples]


def test_shuffled_labels_depend_on_the_seed_alone():
    examples = [Example(str(i), (), "?", f"class {i % 9}") for i in range(18)]
    orders = {tuple(e.target for e in cls.shuffled(examples, seed)) for seed in range(8)}
    assert len(orders) == 8
    assert cls.shuffled(examples, 3) == cls.shuffled(examples, 3)
    assert cls.shuffled(examples[::-1], 3) == cls.shuffled(examples, 3)[::-1]


def test_two_spellings_of_one_class_stay_one_class_when_shuffled():
    # "Rose" used to become "rose" now and then: a "wrong" label that is right.
    spellings = ("Rose", "rose", "iris", "Iris ")
    examples = [Example(str(i), (), "?", name) for i, name in enumerate(spellings)]
    for seed in range(10):
        names = [normalise_name(e.target) for e in cls.shuffled(examples, seed)]
        assert names == ["iris", "iris", "rose", "rose"]


def test_labels_of_a_single_class_cannot_be_shuffled():
    with pytest.raises(InputError, match="--shuffle_labels"):
        cls.shuffled([Example("0", (), "?", "rose"), Example("1", (), "?", "Rose")], 0)


# ---- digits --------------------------------------------------------------------------------------


def test_digits_come_from_the_rl_half_and_shots_are_not_held_out():
    pytest.importorskip("sklearn")
    task = load("digits", shots=4, seed=0, held_out=8)
    assert Counter(e.target for e in task.train) == dict.fromkeys(DIGIT_NAMES, 4)
    assert list(task.splits) == ["held_out"]
    assert Counter(e.target for e in task.splits["held_out"]) == dict.fromkeys(DIGIT_NAMES, 8)
    used = task.train + task.splits["held_out"]
    assert set(ids(used)) <= {item.id for item in read_digits("rl")}
    assert not set(ids(used)) & {item.id for item in read_digits("pretrain")}
    assert not set(ids(task.train)) & set(ids(task.splits["held_out"]))
    assert not {pixels(e) for e in task.train} & {pixels(e) for e in task.splits["held_out"]}
    assert {e.question for e in used} == {f"Which digit is this? {INSTRUCTIONS['think']}"}


# ---- data sets from outside ----------------------------------------------------------------------


def test_a_folder_of_class_folders_becomes_a_task(tmp_path):
    root = class_folders(tmp_path / "set", Dog_rose=3, iris=4)
    task = load(str(root), held_out=2, mode="direct")
    assert Counter(e.target for e in task.train) == {"Dog_rose": 1, "iris": 1}
    assert Counter(e.target for e in task.splits["held_out"]) == {"Dog_rose": 2, "iris": 2}
    assert not set(ids(task.train)) & set(ids(task.splits["held_out"]))
    assert {e.question for e in task.train} == {f"{cls.ANY_PROMPT} {INSTRUCTIONS['direct']}"}
    text = "<answer>dog rose</answer>"
    assert [task.reward(text, e, 0.0).total for e in task.train] == [1.5, 0.5]


def visual_rft_table(path: Path, *labels: str) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = []
    for number, label in enumerate(labels):
        buffer = io.BytesIO()
        picture(number).save(buffer, "PNG")
        rows.append(
            {
                "image": {"bytes": buffer.getvalue(), "path": None},
                "problem": "<image>Which pet? Answer in <answer> </answer>.",
                "solution": f"<answer>{label}</answer>",
            }
        )
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_a_visual_rft_table_becomes_a_task_with_its_own_question(tmp_path):
    labels = ["Beagle", "beagle", "Sphynx", "Sphynx", "Sphynx"]
    path = visual_rft_table(tmp_path / "pets.parquet", *labels)
    task = load(str(path), held_out=5)
    assert sorted(normalise_name(e.target) for e in task.train) == ["beagle", "sphynx"]
    assert len(task.splits["held_out"]) == 3
    assert {e.question for e in task.train} == {"Which pet? Answer in <answer> </answer>."}
    asked = load(str(path), question="Which breed?").train[0].question
    assert asked == f"Which breed? {INSTRUCTIONS['think']}"


def one_line_refusal(*arguments, **more) -> str:
    with pytest.raises(InputError) as error:
        load(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_class_with_too_few_images_is_refused_by_flag_and_name(tmp_path):
    root = class_folders(tmp_path / "set", iris=9, rose=2)
    message = one_line_refusal(str(root), shots=2)
    assert "--shots 2" in message and "'rose' has 2" in message and "iris" not in message


def test_unreadable_images_are_refused_by_file(tmp_path):
    root = class_folders(tmp_path / "set", iris=4, rose=4)
    for name in ("iris/0.png", "rose/1.png", "rose/2.png"):
        (root / name).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    message = one_line_refusal(str(root))
    assert "--data" in message and "iris/0.png" in message


def test_one_unreadable_image_is_left_out_and_reported(tmp_path, capsys):
    root = class_folders(tmp_path / "set", iris=4, rose=4)
    (root / "iris" / "0.png").write_bytes(b"broken")
    task = load(str(root), held_out=9)
    assert "iris/0.png" not in ids(task.train + task.splits["held_out"])
    assert len(task.train + task.splits["held_out"]) == 7
    assert "iris/0.png" in capsys.readouterr().out


def test_class_folders_that_are_one_answer_are_refused_by_name(tmp_path):
    root = class_folders(tmp_path / "set", **{"dog rose": 2, "Dog_Rose": 2, "iris": 2})
    message = one_line_refusal(str(root))
    assert "'dog rose'" in message and "'Dog_Rose'" in message and "--data" in message


@pytest.mark.parametrize("data", ["no/such/folder", "https://example.org/set"])
def test_data_that_is_not_there_is_refused_by_flag(data):
    assert f"--data {data!r}" in one_line_refusal(data)
