"""What the making of the embedded base guarantees (data/garden/corpus.py and data/garden/pretrain.py).

Pictures are functions of seed and number, and show what is asked about them; answers are coarse,
hasty or out of format exactly as often as the constants say, and never where no format is asked
for; only responses are learned; the digits and pictures of pretraining are not those of RL; and a
miniature run writes a complete checkpoint, the same bits for the same seed.
Run: pytest tests/data/garden/test_pretraining.py
"""

import hashlib
import json
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.examples import INSTRUCTIONS, full_question
from data.garden import corpus, pretrain
from data.garden.corpus import (
    HASTY_THOUGHT,
    MAKERS,
    NOT_ASKED,
    P_FINE_DIGIT,
    P_FORMAT_KEPT,
    P_HASTY,
    P_LARGE_SCENE,
    P_SHIFTED_VIEW,
    TARGETS,
    digit_pictures,
    digit_talk,
    draw_pool,
    portrait_talk,
    respond,
    sample_texts,
    scene_places,
    scene_size,
    scene_talk,
)
from data.garden.pretrain import (
    BATCH,
    POOL,
    SEE_BATCH,
    PatchedPicture,
    PerceptionHeads,
    dialogue_pack,
    learning_rate,
    make_batch,
)
from data.garden.puzzles import (
    another_view,
    ask_change,
    ask_measure,
    ask_next,
    ask_order,
    ask_why,
    sample_stages,
)
from data.garden.questions import (
    PORTRAIT_QUESTIONS,
    SCENE_QUESTIONS,
    SUMMARIES,
    Question,
    det_answer,
)
from data.garden.world import (
    CAUSES,
    COLOURS,
    GRID,
    SCENE_SIZE,
    SPECIES,
    WELL_KNOWN,
    sample_scene,
    species_of,
)
from data.labelled import DIGIT_NAMES, read_digits
from model.image import patchify
from model.processor import Processor
from model.vlm import completion_logps
from model.weights import load_model, published_tensors
from rewards import format_reward
from runtime.errors import InputError
from sample import generate_group
from tasks import Settings, change, cls, order
from tasks import count as count_task
from tasks import scenes as scene_tasks
from tasks import vqa as vqa_task

DRAWS = 3000  # a fraction of them is off by 0.03 less than once in a thousand seeds
SIDEWAYS = ("portrait", "growth")  # kinds of 64 pixels; the others are seen from above, 96 pixels


def fingerprint(picture) -> tuple:
    images = [hashlib.sha256(image.tobytes()).hexdigest() for image in picture.images]
    return images, picture.talk(random.Random(0)), picture.places.tolist(), picture.whole.tolist()


def scenes(count: int):
    rng = random.Random(1)
    return [sample_scene(rng, 1 + i % 4) for i in range(count)]


# ---- pools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
def test_a_picture_depends_on_the_seed_and_its_number_alone(kind):
    whole = [fingerprint(p) for p in draw_pool(kind, 0, 6, 16, seed=3)]
    random.seed(99)
    assert [fingerprint(p) for p in draw_pool(kind, 4, 2, 16, seed=3)] == whole[4:]
    assert len({str(f) for f in whole}) == 6
    assert [fingerprint(p) for p in draw_pool(kind, 0, 6, 16, seed=4)] != whole


@pytest.mark.parametrize("kind", MAKERS)
def test_there_is_one_row_of_targets_per_image_token(kind, tiny_dir):
    processor = Processor(tiny_dir)  # tokens of 8 pixels; scenes are first reduced to 64 x 64
    cell = 8 if kind in SIDEWAYS else 12
    for picture in draw_pool(kind, 0, 3, cell, seed=0):
        grids = [patchify(image, processor.image_cfg)[1] for image in picture.images]
        tokens = sum(t * h * w for t, h, w in grids) // 4
        assert picture.places.shape == (tokens, len(TARGETS))
        assert picture.whole.shape == (len(TARGETS),)


def record_calls(monkeypatch, module, name, instead=None) -> list[tuple]:
    """The arguments of every call of module.name from now on: (positional, by name)."""
    calls, real = [], instead or getattr(module, name)

    def record(*args, **kwargs):
        calls.append((args, kwargs))
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, record)
    return calls


def blank(*_, **__) -> Image.Image:
    return Image.new("RGB", (SCENE_SIZE, SCENE_SIZE))


def test_no_picture_of_pretraining_is_rendered_with_a_seed_of_an_rl_task(monkeypatch):
    """The seed decides background, light and rotation, so no picture can be known from before."""
    of_rl, pretrained, names = [], [], {"draw_flower", "draw_scene", "draw_stage"}
    for module in (cls, scene_tasks, change, vqa_task, order, corpus):
        for name in names & set(vars(module)):
            calls = record_calls(monkeypatch, module, name, instead=blank)
            (pretrained if module is corpus else of_rl).append(calls)
    settings = Settings(shots=2, held_out_per_class=2, train_size=20, held_out_size=20)
    for task in (cls, count_task, change, vqa_task, order):
        task.load(settings)
    for kind in MAKERS:
        draw_pool(kind, 0, 40, 16, seed=0)

    def seeds(recorded):
        return {args[-1] for calls in recorded for args, _ in calls}

    assert all(of_rl) and all(pretrained)
    assert len(seeds(of_rl)) > 250 and len(seeds(pretrained)) == 80  # portraits and all others
    assert not seeds(of_rl) & seeds(pretrained)


def test_a_second_picture_changed_as_the_answer_says(monkeypatch):
    drawn = record_calls(monkeypatch, corpus, "draw_scene")
    for picture in draw_pool("change", 0, 20, 16, seed=0):
        ((before, seed), _), ((after, same_seed), _) = drawn[:2]
        del drawn[:2]
        question = picture.talk.args[0]
        assert seed == same_seed and after == question.after
        assert question.seen == ", ".join(p.colour for p in before)
        assert len(picture.images) == 2


def test_a_wilting_flower_is_drawn_where_and_why_the_answer_says(monkeypatch):
    drawn, causes = record_calls(monkeypatch, corpus, "draw_scene"), set()
    for picture in draw_pool("wilting", 0, 40, 16, seed=0):
        ((scene, _), keywords) = drawn.pop(0)
        question = picture.talk.args[0]
        (asked,) = [k for k, p in enumerate(scene) if f"the {p.colour} flower" in question.prompt]
        assert keywords == {"ailing": question.ailing}
        assert question.ailing[asked] == question.answer
        causes.add(question.answer)
    assert drawn == [] and causes == set(CAUSES)


def test_the_stages_of_one_plant_are_drawn_in_the_order_of_the_question(monkeypatch):
    drawn, counts = record_calls(monkeypatch, corpus, "draw_stage"), set()
    for picture in draw_pool("growth", 0, 30, 16, seed=0):
        question, count = picture.talk.args[0], len(picture.images)
        own, drawn[:count] = drawn[:count], []
        flowers, stages, seeds = zip(*(args for args, _ in own), strict=True)
        assert len(set(flowers)) == len(set(seeds)) == 1
        assert ", ".join(stages) == question.seen
        assert question.kind == ("next" if count == 1 else "order")
        counts.add(count)
    assert drawn == [] and counts == {1, 3, 4}


def test_scenes_are_large_as_often_as_stated():
    rng = random.Random(0)
    sizes = [scene_size(rng) for _ in range(DRAWS)]
    assert set(sizes) == set(range(1, 8))
    assert abs(fraction(size > 4 for size in sizes) - P_LARGE_SCENE) < 0.03


def test_second_views_are_taken_from_a_step_aside_as_often_as_stated(monkeypatch):
    drawn, aside = record_calls(monkeypatch, corpus, "draw_scene", instead=blank), []
    draw_pool("change", 0, 1500, SCENE_SIZE, seed=0)
    for ((before, _), _), ((after, _), _) in zip(drawn[::2], drawn[1::2], strict=True):
        if another_view(random.Random(0), after):  # there is a step that keeps all in the frame
            aside.append(not {p.middle for p in after} <= {p.middle for p in before})
    assert len(aside) > 1000 and abs(np.mean(aside) - P_SHIFTED_VIEW) < 0.04


def test_the_digits_of_pretraining_and_of_rl_never_meet():
    pytest.importorskip("sklearn")
    pretrained = [picture.images[0].tobytes() for picture in digit_pictures(16)]
    of_rl = [item.image.tobytes() for item in read_digits("rl")]
    assert (len(pretrained), len(of_rl)) == (899, 898)
    assert not set(pretrained) & set(of_rl)


def test_the_tokenizer_corpus_repeats_and_holds_every_coordinate():
    pools = {"scene": draw_pool("scene", 0, 4, 16, seed=0)}
    texts = list(sample_texts(pools, 16, seed=0))
    assert texts == list(sample_texts(pools, 16, seed=0)) != list(sample_texts(pools, 16, seed=1))
    for pixel in range(0, SCENE_SIZE + 1, GRID):
        value = round(pixel * 1000 / SCENE_SIZE)
        assert f"[{value}, {value}, {value}, {value}]" in texts


# ---- dialogues -----------------------------------------------------------------------------------

ASKED = Question("genus", "Which genus?", "Solara", "yellow petals", seen="a yellow flower")
HURRIED = Question("count", "How many flowers?", "3", "red, red, blue: 3", "2", "red, red, blue")


def fraction(hits) -> float:
    hits = list(hits)
    assert len(hits) >= DRAWS
    return sum(hits) / len(hits)


@pytest.mark.parametrize(
    "mode, thoughts",
    [
        ("think", "<think>yellow petals</think>"),
        (
            "steps",
            "<summary>name the genus</summary><caption>a yellow flower</caption>"
            "<reasoning>yellow petals</reasoning>",
        ),
    ],
)
def test_a_format_with_thoughts_is_kept_as_often_as_stated(mode, thoughts):
    rng = random.Random(0)
    turns = [respond(ASKED, mode, rng) for _ in range(DRAWS)]
    assert {question for question, _ in turns} == {full_question("Which genus?", mode)}
    texts = [text for _, text in turns]
    assert abs(fraction(format_reward(t, mode) for t in texts) - P_FORMAT_KEPT) < 0.02
    kept = f"{thoughts}<answer>Solara</answer>"
    assert set(texts) == {kept, "<answer>Solara</answer>", "Solara"}


def test_the_direct_format_slips_half_as_often_for_half_the_slips_are_direct_answers():
    rng = random.Random(0)
    texts = [respond(ASKED, "direct", rng)[1] for _ in range(DRAWS)]
    kept = P_FORMAT_KEPT + (1 - P_FORMAT_KEPT) / 2
    assert abs(fraction(format_reward(t, "direct") for t in texts) - kept) < 0.015
    assert set(texts) == {"<answer>Solara</answer>", "Solara"}


@pytest.mark.parametrize(
    "question, answer", [(ASKED, "Solara"), (HURRIED, "red, red, blue: 3, so 3")]
)
def test_a_plain_question_gets_the_careful_answer_aloud_where_a_hasty_one_tempts(question, answer):
    rng = random.Random(0)
    turns = {respond(question, "plain", rng) for _ in range(200)}
    assert turns == {(question.prompt, answer)}


@pytest.mark.parametrize("mode", INSTRUCTIONS)
def test_formatted_answers_are_hasty_as_often_as_stated_and_say_so(mode):
    rng = random.Random(0)
    texts = [respond(HURRIED, mode, rng)[1] for _ in range(DRAWS)]
    assert {bare(text) for text in texts} == {"2", "3"}
    assert abs(fraction(bare(text) == "2" for text in texts) - P_HASTY) < 0.03
    tag = {"think": "think", "steps": "reasoning"}.get(mode)
    thoughts = {(bare(t), t.partition(f"<{tag}>")[2].partition("</")[0]) for t in texts}
    expected = {("2", HASTY_THOUGHT), ("3", HURRIED.thought)} if tag else set()
    assert thoughts == expected | {("2", ""), ("3", "")}  # the slips have no thoughts


def questions_of_every_kind(rng: random.Random) -> list[Question]:
    scene, stages = sample_scene(rng, rng.randint(1, 7)), sample_stages(rng, "order")
    asks = [*SCENE_QUESTIONS.values(), ask_measure, ask_change, ask_why]
    asked = [ask(rng, scene) for ask in asks]
    asked += [ask(rng, rng.choice(SPECIES).flower) for ask in PORTRAIT_QUESTIONS.values()]
    asked += [ask_order(rng, stages), ask_next(rng, sample_stages(rng, "next"))]
    return [question for question in asked if question is not None]


def test_every_kind_of_question_can_be_answered_in_every_format():
    rng, kinds = random.Random(0), set()
    for question in (q for _ in range(60) for q in questions_of_every_kind(rng)):
        for mode in INSTRUCTIONS:
            asked, text = respond(question, mode, rng)
            assert asked == f"{question.prompt} {INSTRUCTIONS[mode]}"
            start = {"think": "<think>", "steps": "<summary>", "direct": "<answer>"}[mode]
            if text.startswith(start):  # else the format slipped
                assert format_reward(text, mode) == 1.0, text
                kinds.add((question.kind, mode))
    asked_kinds = set(SUMMARIES) - {"digit"}
    assert kinds == {(kind, mode) for kind in asked_kinds for mode in INSTRUCTIONS}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_picture_is_asked_about_in_every_mode(kind):
    pictures, rng, endings = draw_pool(kind, 0, 10, 16, seed=0), random.Random(0), set()
    for picture in pictures * 8:
        for asked, _ in picture.talk(rng):
            endings.add(next((m for m, words in INSTRUCTIONS.items() if words in asked), "plain"))
    assert endings == {*INSTRUCTIONS, "plain"}


def test_boxes_in_dialogues_are_exact_where_no_format_is_asked_for():
    rng, plain, formatted = random.Random(0), [], []
    for scene in scenes(300):
        for asked, response in scene_talk(scene, rng):
            prompt, _, instruction = asked.partition(".")
            if prompt.startswith("Find every "):
                colour = prompt.split()[2]
                found = [p for p in scene if p.colour == colour]
                true = {det_answer(found, confidence) for confidence in ("1.0", "0.9", "0.8")}
                given = bare(response) if instruction else response.rpartition(", so ")[2]
                (formatted if instruction else plain).append(given in true)
    assert len(plain) > 30 and all(plain)
    assert 0.2 < np.mean(formatted) < 0.6


def bare(text: str) -> str:
    return text.rpartition("<answer>")[2].removesuffix("</answer>")


@pytest.mark.parametrize("known, expected", [(False, 0.2), (True, 0.85)])
def test_species_are_named_finely_as_often_as_stated(known, expected):
    rng = random.Random(0)
    species = [s for s in SPECIES if (s in WELL_KNOWN) == known]
    named = []
    for i in range(DRAWS // 2):
        s = species[i % len(species)]
        for question, response in portrait_talk(s.flower, rng)[:2]:
            assert question.startswith("Which species is this flower?")
            assert bare(response) in (s.name, s.genus)
            named.append(bare(response) == s.name)
    assert abs(fraction(named) - expected) < 0.03


def test_a_flower_of_no_species_is_never_named():
    names = {word for s in SPECIES for word in (s.genus, s.epithet)}
    seen = 0
    for picture in draw_pool("portrait", 0, 60, 16, seed=0):
        flower = picture.talk.args[0]
        if species_of(flower) is None:
            seen += 1
            text = " ".join(r for _, r in picture.talk(random.Random(0)))
            assert not names & set(text.replace(".", " ").split())
    assert seen > 5


def test_digits_are_named_finely_as_often_as_stated_and_never_wrongly():
    rng = random.Random(0)
    fine = []
    for i in range(DRAWS // 2):
        value = i % 10
        coarse = {"an even digit" if value % 2 == 0 else "an odd digit"}
        coarse |= {"a round one"} if value in (0, 6, 8, 9) else set()
        for _, response in digit_talk(value, rng):
            assert bare(response) in {DIGIT_NAMES[value]} | coarse
            fine.append(bare(response) == DIGIT_NAMES[value])
    assert abs(fraction(fine) - P_FINE_DIGIT) < 0.03


# ---- what is where ------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [8, 12, 16])
def test_every_place_knows_the_flower_over_its_middle(cell):
    names, side = list(TARGETS), SCENE_SIZE // cell
    for scene in scenes(40):
        places = scene_places(scene, cell)
        assert places.shape == (side * side, len(TARGETS))
        covered = 0
        for token, place in enumerate(places):
            x, y = (token % side + 0.5) * cell, (token // side + 0.5) * cell
            over = [p for p in scene if p.x0 <= x < p.x1 and p.y0 <= y < p.y1]
            told = dict(zip(names, place.tolist(), strict=True))
            if not over:
                own = {"colour": 0, "x": x // 4, "y": y // 4}
                assert told == dict.fromkeys(names, NOT_ASKED) | own
                continue
            (flower,) = over
            assert told["width"] == (flower.x1 - flower.x0) // 4
            assert (told["x"], told["y"]) == (
                (flower.x0 + flower.x1) // 2 // 4,
                (flower.y0 + flower.y1) // 2 // 4,
            )
            covered += 1
            assert COLOURS[told["colour"] - 1] == flower.colour
            box = [GRID * told[name] for name in ("x0", "y0", "x1", "y1")]
            assert box == [flower.x0, flower.y0, flower.x1, flower.y1]
        assert covered > 0 and all(
            0 <= places[:, i].max() < n for i, n in enumerate(TARGETS.values())
        )


def test_the_places_of_a_wilting_flower_know_why():
    told, cause = Counter(), list(TARGETS).index("cause")
    for picture in draw_pool("wilting", 0, 60, 8, seed=0):
        question = picture.talk.args[0]
        known = {CAUSES[k - 1] for k in picture.places[:, cause] if k > 0}
        assert known == set(question.ailing.values())
        assert picture.places[:, cause].max() <= len(CAUSES)
        told.update(known)
    assert set(told) == set(CAUSES)


# ---- perception heads ----------------------------------------------------------------------------


def as_examples(processor, *pools):
    return [
        PatchedPicture(p, [patchify(image, processor.image_cfg) for image in p.images])
        for pool in pools
        for p in pool
    ]


def test_heads_that_know_nothing_lose_the_logarithm_of_the_choices():
    heads = PerceptionHeads(32)
    torch.nn.init.zeros_(heads.linear.weight)
    torch.nn.init.zeros_(heads.linear.bias)
    asked = {"portrait": list(TARGETS)[:4]}
    asked |= dict.fromkeys(("scene", "change", "wilting"), list(TARGETS))
    for kind, columns in asked.items():
        pictures = draw_pool(kind, 0, 3, 16, seed=0)
        features = torch.zeros(sum(len(p.places) for p in pictures), 32)
        loss, _ = heads(features, pictures)
        assert loss.item() == pytest.approx(sum(math.log(TARGETS[c]) for c in columns), rel=1e-5)


def test_the_tower_learns_to_see_one_batch_in_20_steps(tiny_dir):
    torch.manual_seed(0)
    processor = Processor(tiny_dir)
    tower = load_model(tiny_dir, torch.float32, torch.device("cpu")).visual
    pools = draw_pool("portrait", 0, 4, 8, seed=0), draw_pool("scene", 0, 4, 12, seed=0)
    examples = as_examples(processor, *pools)
    pixels = torch.cat([p for e in examples for p, _ in e.patches])
    grids = [grid for e in examples for _, grid in e.patches]
    heads = PerceptionHeads(32)
    adam = torch.optim.AdamW([*tower.parameters(), *heads.parameters()], lr=1e-2)
    losses = []
    for _ in range(20):
        loss, accuracy = heads(tower(pixels, grids), [e.picture for e in examples])
        losses.append(loss.item())
        assert 0 <= accuracy <= 1
        loss.backward()
        adam.step()
        adam.zero_grad()
    assert losses[-1] < 0.7 * losses[0], losses


# ---- what is learned -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tiny_dir):
    """A pack over all kinds of pictures, its weights, and the dialogues that are in it."""
    processor = Processor(tiny_dir)
    pools = (draw_pool(kind, 0, 2, 8 if kind in SIDEWAYS else 12, seed=0) for kind in MAKERS)
    examples = as_examples(processor, *pools)
    pack, weights = dialogue_pack(examples, processor, random.Random(5))
    rng = random.Random(5)
    turns = [turn for e in examples for turn in e.picture.talk(rng)]
    return processor, pack, weights, turns


def test_only_the_responses_and_their_end_tokens_are_learned(packed):
    processor, pack, _, turns = packed
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    responses, current = [], []
    for token in pack.targets.tolist():
        if token == end:
            responses.append(processor.decode(current))
            current = []
        else:
            current.append(token)
    assert current == []
    assert responses == [response for _, response in turns]


def test_every_learned_token_is_predicted_from_the_token_before_it(packed):
    processor, pack, _, turns = packed
    assert torch.equal(pack.ids[pack.predictors + 1], pack.targets)
    # The first token of a response is predicted from the last one of the chat template.
    _, after = processor.template(1)
    lengths = [len(processor.encode(response)) + 1 for _, response in turns]
    firsts = np.cumsum([0, *lengths[:-1]])
    assert set(pack.ids[pack.predictors[firsts]].tolist()) == {after[-1]}


def test_the_questions_are_in_the_pack_but_not_learned(packed):
    processor, pack, _, turns = packed
    everything = processor.tokenizer.decode(pack.ids)
    assert all(question in everything for question, _ in turns)
    learned = processor.tokenizer.decode(pack.targets)
    assert "?" in everything and "?" not in learned and "<|im_start|>" not in learned


def test_a_response_weighs_the_root_of_its_length(packed):
    processor, pack, weights, turns = packed
    lengths = [len(processor.encode(response)) + 1 for _, response in turns]
    assert len(weights) == len(pack.targets) == len(pack.predictors) == sum(lengths)
    sums = torch.stack([own.sum() for own in weights.split(lengths)])
    torch.testing.assert_close(sums, torch.tensor(lengths).float().sqrt())


def test_a_packed_dialogue_is_scored_as_if_it_stood_alone(packed, tiny_dir):
    processor = packed[0]
    model = load_model(tiny_dir, torch.float32, torch.device("cpu"))
    examples = as_examples(processor, *(draw_pool(kind, 0, 2, 8, seed=0) for kind in SIDEWAYS))
    pack, _ = dialogue_pack(examples, processor, random.Random(5))
    with torch.no_grad():
        together, _ = completion_logps(model, pack)
        turns = [t for e in examples for t in [e] * len(e.picture.talk(random.Random(5)))]
        rng, alone = random.Random(5), []
        for owner, turn in zip(
            turns, [t for e in examples for t in e.picture.talk(rng)], strict=True
        ):
            single = PatchedPicture(SingleTurn(turn), owner.patches)
            own, _ = completion_logps(model, dialogue_pack([single], processor, rng)[0])
            alone.append(own)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


class SingleTurn:
    """A picture about which one thing is said."""

    def __init__(self, turn):
        self.turn = turn

    def talk(self, rng):
        return [self.turn]


# ---- the run -------------------------------------------------------------------------------------


def test_a_step_shows_pictures_that_exist_and_enough_of_them_are_drawn():
    assert set(POOL) == set(MAKERS) and set(BATCH) == {*MAKERS, "digit"}
    assert set(SEE_BATCH) == {"portrait", "scene", "wilting"}  # what has places to be seen
    for counts in (BATCH, SEE_BATCH):
        assert all(100 * n <= POOL[kind] for kind, n in counts.items() if kind in POOL)


def test_a_batch_has_so_many_different_pictures_of_every_kind(tiny_dir):
    processor = Processor(tiny_dir)
    pools = {kind: draw_pool(kind, 0, 4, 12, seed=0) for kind in ("portrait", "change", "growth")}
    counts = {"portrait": 4, "change": 2}
    batch, again = (make_batch(pools, counts, processor, random.Random(1)) for _ in range(2))
    assert {kind: len(examples) for kind, examples in batch.items()} == counts
    for kind, examples in batch.items():
        chosen = [id(e.picture) for e in examples]
        assert len(set(chosen)) == counts[kind] and set(chosen) <= set(map(id, pools[kind]))
        assert chosen == [id(e.picture) for e in again[kind]]
        for example in examples:
            expected = [patchify(image, processor.image_cfg) for image in example.picture.images]
            assert [grid for _, grid in example.patches] == [grid for _, grid in expected]
            assert all(
                torch.equal(a, b) for (a, _), (b, _) in zip(example.patches, expected, strict=True)
            )


def test_the_learning_rate_warms_up_and_ends_at_a_hundredth_of_the_peak():
    rates = [learning_rate(step, 300, peak=1e-3) for step in range(300)]
    assert rates[0] == pytest.approx(2e-5) and max(rates) == rates[49] == pytest.approx(1e-3)
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert 1e-5 <= rates[-1] < 1.01e-5 + 1e-6
    assert learning_rate(4, 5, peak=1e-3) == pytest.approx(1e-4)  # a run shorter than the warm-up


MINIATURE_POOL = {"portrait": 6, "scene": 6, "change": 4, "wilting": 3, "growth": 3}


@pytest.fixture
def miniature(monkeypatch):
    """Sizes with which pretraining takes a second; the global float precision is put back."""
    pytest.importorskip("sklearn")  # the base sees digits as well
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    sizes |= dict(num_key_value_heads=2, vision_depth=1, vision_embed_dim=32, vision_num_heads=2)
    monkeypatch.setattr(pretrain, "SIZES", sizes | dict(vision_mlp_ratio=2, patch_size=8))
    monkeypatch.setattr(pretrain, "VOCAB_SIZE", 400)
    monkeypatch.setattr(pretrain, "POOL", MINIATURE_POOL)
    batch = {"portrait": 2, "scene": 2, "change": 1, "wilting": 1, "growth": 1, "digit": 1}
    monkeypatch.setattr(pretrain, "BATCH", batch)
    monkeypatch.setattr(pretrain, "SEE_BATCH", {"portrait": 3, "scene": 2})

    def few_texts(pools, count, seed):
        return sample_texts(pools, count // 50, seed)

    monkeypatch.setattr(pretrain, "sample_texts", few_texts)
    precision = torch.get_float32_matmul_precision()
    yield ["--see_steps", "2", "--talk_steps", "3"]
    torch.set_float32_matmul_precision(precision)


def test_a_run_writes_a_complete_checkpoint_and_repeats_bit_for_bit(miniature, tmp_path, capsys):
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    for directory, seed in ((first, "0"), (again, "0"), (other, "1")):
        pretrain.main([*miniature, "--output_dir", str(directory), "--seed", seed])
    capsys.readouterr()
    files = sorted(path.name for path in first.iterdir())
    assert files == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in files)
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()

    # Ours reads it, and answers.
    processor = Processor(first)
    model = load_model(first, torch.float32, torch.device("cpu"))
    image = draw_pool("portrait", 0, 1, 16, seed=0)[0].images[0]
    prompt = processor.prompt("p", [image], "Which species is this flower?")
    assert len(generate_group(model, processor, [prompt], 2, 4).texts) == 2

    # So does transformers, with every weight in its place.
    transformers = pytest.importorskip("transformers")
    theirs, info = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        first, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        inputs = {"input_ids": prompt.ids[None], "pixel_values": prompt.pixels}
        inputs |= {"image_grid_thw": torch.tensor(prompt.grids)}
        inputs |= {"mm_token_type_ids": (prompt.ids == processor.cfg.image_token_id).int()[None]}
        expected = theirs(**inputs).logits[0, -1].log_softmax(-1)
        pack = pretrain.make_pack([prompt], [[torch.tensor([7])]])
        logp, _ = completion_logps(model, pack)
    assert float(logp[0]) == pytest.approx(float(expected[7]), abs=2e-4)


def test_a_run_keeps_a_journal_and_every_weight_moves(miniature, tmp_path, capsys):
    directory = tmp_path / "base"
    pretrain.main([*miniature, "--output_dir", str(directory)])
    printed = [json.loads(row) for row in capsys.readouterr().out.splitlines() if row[0] == "{"]
    journal = (tmp_path / "base.pretrain.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(row) for row in journal]
    assert rows == printed
    assert [(r["stage"], r.get("step")) for r in rows] == [
        ("start", None),
        ("see", 2),
        ("talk", 3),
        ("done", None),
    ]
    assert all(math.isfinite(v) for row in rows[1:3] for k, v in row.items() if k != "stage")
    assert rows[0]["pictures"] == MINIATURE_POOL | {"digit": 899}
    assert {f"nll/{kind}" for kind in (*MAKERS, "digit")} <= set(rows[2])
    seen = {key.removeprefix("seen/") for key in rows[2] if key.startswith("seen/")}
    assert seen == {"portrait", "scene", "change", "wilting"}  # where something is where
    start = pretrain.init_model(Processor(directory).cfg, seed=0)
    trained = load_file(directory / "model.safetensors")
    still = [n for n, p in published_tensors(start).items() if torch.equal(p, trained[n])]
    assert still == []


def test_a_run_can_go_on_from_a_checkpoint_with_its_tokenizer(miniature, tmp_path, capsys):
    first, more = tmp_path / "first", tmp_path / "more"
    pretrain.main([*miniature, "--output_dir", str(first)])
    again = ["--model_dir", str(first), "--seed", "1"]
    pretrain.main([*miniature, "--output_dir", str(more), *again])
    assert (first / "tokenizer.json").read_bytes() == (more / "tokenizer.json").read_bytes()
    before, after = (load_file(path / "model.safetensors") for path in (first, more))
    fresh = published_tensors(pretrain.init_model(Processor(first).cfg, seed=1))
    matrices = [name for name, tensor in before.items() if tensor.ndim > 1]
    assert matrices
    for name in matrices:
        moved = float((after[name] - before[name]).norm())
        assert 0 < moved < 0.2 * float((after[name] - fresh[name]).norm()), name


@pytest.mark.parametrize("scale", ["0", "0.2", "0.4", "-1", "nan", "inf"])
def test_a_pool_smaller_than_a_batch_of_either_stage_is_refused_by_flag(scale, miniature, tmp_path):
    with pytest.raises(InputError, match="--pool_scale"):
        pretrain.main([*miniature, f"--pool_scale={scale}", "--output_dir", str(tmp_path / "x")])
