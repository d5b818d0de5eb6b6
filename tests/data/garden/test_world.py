"""The garden world: pictures repeat exactly and show what they say, splits are disjoint.

What is guaranteed about data/garden/world.py and data/garden/drawing.py. Questions and their
answers: tests/data/garden/test_questions.py. Run: pytest tests/data/garden/test_world.py
"""

import random
from collections import Counter
from functools import partial
from itertools import combinations, product

import numpy as np
import pytest
from PIL import Image

from data.garden import drawing, world
from data.garden.drawing import PETAL_RGB, draw_flower, draw_scene, draw_stage, paint_flower
from data.garden.world import CENTRES, COLOURS, RL_SPECIES, SHAPES, SPECIES, STAGES, Flower
from runtime.errors import InputError


def scenes(count, seed=0):
    rng = random.Random(seed)
    for index in range(count):
        yield rng, world.sample_scene(rng, 1 + index % 7)


def pixels(image):
    return np.asarray(image).astype(int)


def test_species_are_fine_grained_but_decided_by_what_is_seen():
    assert len(SPECIES) == len({s.name for s in SPECIES}) == len(world.SPECIES_OF) == 40
    assert set(Counter(s.genus for s in SPECIES).values()) == {4}
    assert min(Counter(s.epithet for s in SPECIES).values()) >= 2, "no epithet names a species"
    for a, b in combinations(SPECIES, 2):
        assert a.name not in b.name and b.name not in a.name
        distance = sum(x != vars(b.flower)[name] for name, x in vars(a.flower).items())
        assert (1 <= distance <= 2) if a.genus == b.genus else distance >= 2, (a, b)


def test_every_genus_gives_three_species_to_rl_and_one_to_ood():
    ood, known = set(world.OOD_SPECIES), set(world.WELL_KNOWN)
    assert set(Counter(s.genus for s in ood).values()) == {1} and len(ood) == 10
    assert set(RL_SPECIES) == set(SPECIES) - ood
    assert len(known) == 12 and len(known & ood) == 3


def test_random_flowers_reach_every_value_and_others_are_refused_by_name():
    rng = random.Random(12)
    drawn = [world.random_flower(rng) for _ in range(400)]
    for name, values in {"petals": world.PETAL_COUNTS, "shape": SHAPES, "colour": COLOURS}.items():
        assert {getattr(flower, name) for flower in drawn} == set(values)
    assert {flower.centre for flower in drawn} == set(CENTRES)
    with pytest.raises(InputError, match="petals=7"):
        Flower(7, "round", "red", "yellow")
    with pytest.raises(InputError, match="centre='white'"):  # invisible on white petals
        Flower(5, "round", "white", "white")


def test_rendering_seeds_of_splits_species_images_and_seeds_are_disjoint():
    splits = list(product(world.SPLITS, (0, 2503)))
    seeds = [seed for key in splits for _, seed, _ in world.class_examples(SPECIES, 5, *key)]
    assert len(set(seeds)) == len(seeds) == 4 * 2 * 40 * 5
    corners = product(world.SPLITS, (0, 2**24 - 1), (0, 4095), (0, 2**24 - 1))
    assert len({world.render_seed(*corner) for corner in corners}) == 4 * 2**3
    with pytest.raises(InputError, match="index"):
        world.render_seed("train", 0, 0, 2**24)
    with pytest.raises(InputError, match="split 'dev'"):
        list(world.class_examples(SPECIES, 1, "dev", 0))


def test_the_one_shot_set_is_part_of_the_four_shot_set():
    one, four = (list(world.class_examples(RL_SPECIES, shots, "train", 2503)) for shots in (1, 4))
    assert four[:30] == one and {s for _, _, s in one} == set(RL_SPECIES)
    assert len({identifier for identifier, _, _ in four}) == 120


def assert_well_formed(scene):
    """On the grid, inside the picture, of its size, in reading order, without overlap."""
    centres = [((p.y0 + p.y1) / 2, (p.x0 + p.x1) / 2) for p in scene]
    assert centres == sorted(centres)
    for p in scene:
        assert all(value % 4 == 0 and 0 <= value <= 96 for value in (p.x0, p.y0, p.x1, p.y1))
        low, high = (20, 28) if p.size == "small" else (36, 44)
        assert low <= p.x1 - p.x0 <= high and low <= p.y1 - p.y0 <= high
    for a, b in combinations(scene, 2):
        assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0


def test_scenes_are_well_formed_and_name_25_coordinates():
    coordinates, large = set(), []
    for index, (_, scene) in enumerate(scenes(350)):
        assert len(scene) == 1 + index % 7
        assert_well_formed(scene)
        large.append(sum(p.size == "large" for p in scene) if len(scene) > 4 else 0)
        coordinates.update(value for p in scene for value in world.box_1000(p))
    assert set(large) == {0, 1, 2}, "few flowers of a crowded scene are large"
    assert coordinates <= {round(4 * k / 96 * 1000) for k in range(25)}
    placed = world.Placed(SPECIES[0].flower, "small", 4, 0, 28, 96)
    assert world.box_1000(placed) == [42, 0, 292, 1000]
    for n in (0, 8):
        with pytest.raises(InputError, match="n_objects"):
            world.sample_scene(random.Random(0), n)


def test_replaying_the_calls_turns_the_first_scene_into_the_second():
    actions = Counter()
    for rng, scene in scenes(400, seed=8):
        n_changes = rng.randint(1, min(3, len(scene)))
        after, calls = world.change_scene(scene, rng, n_changes)
        states = sorted(str([p.flower.colour, p.size, (p.x0 + p.x1, p.y0 + p.y1)]) for p in after)
        assert replay(scene, calls) == states, (calls, scene)
        assert len(calls) == n_changes
        assert_well_formed(after)
        actions.update(call.split("(")[0] for call in calls)
    assert set(actions) == {"change_colour", "change_size", "remove"}
    assert min(actions.values()) > 40


def replay(scene, calls):
    """Apply the calls to the numbered flowers; what is left, as sorted texts."""
    state = {
        f"f{k}": [p.flower.colour, p.size, (p.x0 + p.x1, p.y0 + p.y1)]
        for k, p in enumerate(scene, start=1)
    }
    for call in calls:
        name, arguments = call[:-1].split("(")
        number, *value = arguments.split(", ")
        if name == "remove":
            del state[number]
        else:
            slot = {"change_colour": 0, "change_size": 1}[name]
            assert state[number][slot] != value[0], "a change must change something"
            state[number][slot] = value[0]
    return sorted(map(str, state.values()))


def test_another_viewpoint_moves_all_flowers_alike_or_is_refused():
    refused = 0
    for rng, scene in scenes(200, seed=13):
        dx, dy = (4 * rng.randint(-3, 3) for _ in range(2))
        boxes = [(p.x0 + dx, p.y0 + dy, p.x1 + dx, p.y1 + dy) for p in scene]
        is_inside = all(0 <= value <= 96 for box in boxes for value in box)
        moved = [world.Placed(p.flower, p.size, *b) for p, b in zip(scene, boxes, strict=True)]
        assert world.shifted(scene, dx, dy) == (tuple(moved) if is_inside else None)
        refused += not is_inside
    assert 40 < refused < 190


@pytest.mark.parametrize("kind", ["portrait", "scene", *STAGES])
def test_a_picture_is_a_function_of_its_seed(kind):
    scene, flower = world.sample_scene(random.Random(1), 3), SPECIES[0].flower
    assert scene == world.sample_scene(random.Random(1), 3)
    draw = {"portrait": partial(draw_flower, flower), "scene": partial(draw_scene, scene)}
    draw |= {stage: partial(draw_stage, flower, stage) for stage in STAGES}
    first, again, other = (pixels(draw[kind](seed)) for seed in (5, 5, 6))
    assert first.shape == ((96, 96, 3) if kind == "scene" else (64, 64, 3))
    assert (first == again).all() and (first != other).mean() > 0.5


def test_petals_reach_the_four_sides_of_their_box_within_two_pixels():
    rng = random.Random(2)
    for petals in world.PETAL_COUNTS:
        for shape in SHAPES:
            for side in (20, 44):
                flower = Flower(petals, shape, "red", "yellow")
                layer = Image.new("RGBA", (96 * 4, 96 * 4))
                paint_flower(layer, flower, (32 * 4, 16 * 4, (32 + side) * 4, (16 + side) * 4), rng)
                alpha = np.asarray(layer.resize((96, 96), Image.Resampling.LANCZOS))[..., 3] >= 96
                rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
                measured = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                gaps = np.abs(np.subtract(measured, (32, 16, 32 + side, 16 + side)))
                assert gaps.max() <= 2, (flower, side, measured)


@pytest.mark.parametrize("wilted", [False, True])
def test_the_nearest_colour_of_the_palette_names_every_flower(wilted):
    """Neither jitter and light nor wilting carry a petal over to the colour of another name."""
    palette = np.array([PETAL_RGB[name] for name in COLOURS])
    palette = 0.7 * palette + 0.3 * np.array(drawing.WILT_RGB) if wilted else palette
    # Far apart, since the model sees them through grain and at a few pixels only.
    assert min(np.abs(a - b).sum() for a, b in combinations(palette, 2)) > 60
    for seed in range(60):
        flower = world.random_flower(random.Random(seed))
        layer = Image.new("RGBA", (256, 256))
        paint_flower(layer, flower, (0, 0, 256, 256), random.Random(seed), wilted=wilted)
        opaque = pixels(layer).reshape(-1, 4)
        opaque = opaque[opaque[:, 3] == 255, :3]
        votes = ((opaque[:, None] - palette) ** 2).sum(-1).argmin(1)
        assert COLOURS[np.bincount(votes).argmax()] == flower.colour, (seed, flower)


def near(scene, places, reach):
    """Which pixels are within `reach` of the boxes of these flowers, (96, 96) bool."""
    mask = np.zeros((96, 96), bool)
    for place in places:
        p = scene[place]
        mask[max(0, p.y0 - reach) : p.y1 + reach, max(0, p.x0 - reach) : p.x1 + reach] = True
    return mask


def test_changes_and_causes_repaint_their_flower_alone():
    reach = 8  # pixels: shade and dry soil reach 3 or 4 beyond the box, and their edges are smooth
    drawn = Counter()
    for index, (rng, scene) in enumerate(scenes(28, seed=8)):
        healthy = pixels(draw_scene(scene, index))
        rest = pixels(draw_scene(scene[1:], index))
        assert not (rest != healthy)[~near(scene, [0], 3)].any()
        places = rng.sample(range(len(scene)), min(2, len(scene)))
        ailing = dict(zip(places, rng.sample(world.CAUSES, len(places)), strict=True))
        both = pixels(draw_scene(scene, index, ailing=ailing))
        for place, cause in ailing.items():
            alone = pixels(draw_scene(scene, index, ailing={place: cause}))
            changed = (alone != healthy).any(-1)
            assert changed[near(scene, [place], 0)].mean() > 0.3
            assert not changed[~near(scene, [place], reach)].any()
            local = near(scene, [place], reach) & ~near(scene, set(places) - {place}, reach)
            assert (both == alone)[local].all()
            drawn[cause] += 1
    assert min(drawn.values()) > 5 and set(drawn) == set(world.CAUSES)


def test_the_three_causes_look_different_on_every_flower_even_at_the_edge():
    """By 30 pixels or more, each seen through noise and grain; none looks like wilting alone."""
    causes = (*world.CAUSES, "no cause")
    for index, (_, scene) in enumerate(scenes(7, seed=10)):
        for place in range(len(scene)):
            looks = {c: pixels(draw_scene(scene, index, ailing={place: c})) for c in causes}
            for a, b in combinations(causes, 2):
                different = np.abs(looks[a] - looks[b]).max(-1) > 24
                assert different.sum() >= 30, (a, b, scene[place])


GREY = (128, 128, 128)  # no part of a plant is grey


def alike(picture, rgb, tolerance=40):
    """How many pixels have this colour, up to jitter and light."""
    return int((np.abs(pixels(picture) - rgb).max(-1) <= tolerance).sum())


@pytest.mark.parametrize("colour", COLOURS)
def test_the_four_stages_show_different_things(colour, monkeypatch):
    """Bud and bloom show the petals' colour, a bloom more of it and its centre, seeds a brown head,
    a sprout nothing but little green."""
    plain = Image.new("RGB", (64, 64), GREY)
    monkeypatch.setattr(drawing, "background", lambda *_: plain.copy())
    centres = [name for name in CENTRES if name != colour]
    for seed in range(4):
        flower = Flower(5, "round", colour, centres[seed % len(centres)])
        pictures = {stage: draw_stage(flower, stage, seed) for stage in STAGES}
        petal = {stage: alike(picture, PETAL_RGB[colour]) for stage, picture in pictures.items()}
        assert petal["sprout"] <= 4 and petal["seeds"] <= 12
        assert petal["bud"] >= 25 and petal["bloom"] >= 3 * petal["bud"]
        assert alike(pictures["bloom"], drawing.CENTRE_RGB[flower.centre]) >= 20
        brown = {stage: alike(picture, (104, 76, 40), 24) for stage, picture in pictures.items()}
        assert brown["seeds"] >= 80 > 3 * max(brown[stage] for stage in STAGES[:2])
        plant = {stage: 64 * 64 - alike(picture, GREY, 4) for stage, picture in pictures.items()}
        assert 60 <= plant["sprout"] < 0.8 * min(plant[stage] for stage in STAGES[1:])
