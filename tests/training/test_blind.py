"""What is shown in place of the right pictures."""

from dataclasses import replace

from PIL import Image

import evaluate
from data.examples import Example
from data.garden.drawing import draw_flower
from data.garden.world import RL_SPECIES
from model.image import load_image
from training.blind import GREY, with_pictures


def some_examples():
    """Six questions about one picture, two about three, one about two."""
    pictures = [draw_flower(species.flower, seed=0) for species in RL_SPECIES[:14]]
    counts = [1] * 6 + [3, 3, 2]
    return [
        Example(f"e{n}", tuple(pictures[n : n + count]), "?", f"t{n}")
        for n, count in enumerate(counts)
    ]


def test_swapped_pictures_are_those_of_another_question_with_as_many():
    examples = some_examples()
    swapped = with_pictures(examples, "swapped")
    assert [replace(e, images=()) for e in swapped] == [replace(e, images=()) for e in examples]
    for shown, example in zip(swapped[:8], examples[:8], strict=True):
        (owner,) = [e for e in examples if e.images == shown.images]
        assert owner is not example and len(owner.images) == len(example.images)
    assert len({id(e.images[0]) for e in swapped[:6]}) == 6  # each is shown once
    assert all(
        image.getcolors() == [(image.width * image.height, GREY)] for image in swapped[8].images
    )  # has no partner


def test_the_order_of_a_list_does_not_bring_like_pictures_together():
    """In `cls` every thirtieth question is about the same species."""
    examples = [
        Example(f"e{n}", (draw_flower(RL_SPECIES[n % 30].flower, seed=n),), "?", f"{n % 30}")
        for n in range(120)
    ]
    shown = {id(e.images[0]): e.target for e in examples}
    pairs = zip(with_pictures(examples, "swapped"), examples, strict=True)
    assert sum(shown[id(other.images[0])] == e.target for other, e in pairs) < 12


def test_a_picture_is_not_swapped_for_itself_where_several_questions_are_about_it(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "copy.png", "b.png")]
    for path, colour in zip(paths, ("red", "red", "blue"), strict=True):
        Image.new("RGB", (8, 6), colour).save(path)
    examples = [Example(str(i), (path,), "?", "x") for i, path in enumerate(paths[:2] * 2)]
    for shown in with_pictures(examples, "swapped"):
        assert shown.images[0].getcolors() == [(48, GREY)]
    examples = [Example(str(i), (path,), "?", "x") for i, path in enumerate([paths[0], paths[2]])]
    assert [e.images[0] for e in with_pictures(examples, "swapped")] == [paths[2], paths[0]]


def test_grey_pictures_have_the_size_of_the_right_ones_and_real_ones_stay():
    examples = some_examples()
    assert with_pictures(examples, "real") is examples
    for shown, example in zip(with_pictures(examples, "grey"), examples, strict=True):
        sizes = [load_image(image).size for image in example.images]
        assert [image.size for image in shown.images] == sizes
        assert all(
            image.getcolors() == [(image.width * image.height, GREY)] for image in shown.images
        )


def test_a_model_that_sees_answers_less_well_with_the_pictures_of_others(capsys):
    scores = {}
    for pictures in ("real", "swapped"):
        words = "--task ground --split held_out --held_out_size 40".split()
        evaluate.main([*words, "--pictures", pictures])
        line = capsys.readouterr().out.splitlines()[-1]
        assert (" with swapped pictures: " in line) == (pictures == "swapped")
        scores[pictures] = float(line.split("%")[0].rsplit(" ", 1)[1])
    assert scores["swapped"] < scores["real"] / 2
