"""What the making of the embedded base guarantees (tasks/pretraining.py and train_sft.py).

Pictures are functions of seed and number; names, formats and boxes are imprecise exactly as often
as the constants say; only responses are learned; the digits and pictures of pretraining are not
those of RL; and a miniature run writes a complete checkpoint, the same bits for the same seed.
Run: pytest tests/test_garden_pretraining.py
"""

import hashlib
import json
import math
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train_sft
from model.errors import InputError
from model.image import patchify
from model.text import Processor
from model.vlm import completion_logps
from model.weights import load_model
from rewards import format_reward
from sample import generate_group
from tasks import cls, full_question
from tasks.garden import COLOURS, GRID, SCENE_SIZE, SPECIES, WELL_KNOWN, sample_scene, species_of
from tasks.garden_questions import NO_OBJECTS, Question, ask_det, ask_ground
from tasks.pretraining import (
    MAKERS,
    NOT_ASKED,
    P_BOX_NOISE,
    P_FINE_DIGIT,
    P_FORMAT_KEPT,
    TARGETS,
    digit_pictures,
    digit_talk,
    draw_pool,
    noisy_boxes,
    portrait_talk,
    respond,
    sample_texts,
    scene_places,
)
from tasks.readers import DIGIT_NAMES, read_digits
from train_sft import PatchedPicture, PerceptionHeads, dialogue_pack, learning_rate

DRAWS = 3000  # a fraction of them is off by 0.03 less than once in a thousand seeds


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
    cell = 8 if kind == "portrait" else 12
    for picture in draw_pool(kind, 0, 3, cell, seed=0):
        grids = [patchify(image, processor.image_cfg)[1] for image in picture.images]
        tokens = sum(t * h * w for t, h, w in grids) // 4
        assert picture.places.shape == (tokens, len(TARGETS))
        assert picture.whole.shape == (len(TARGETS),)


def test_no_portrait_of_pretraining_is_a_picture_of_the_rl_task():
    task = cls.load("garden", 2, 2503, 2, "think")
    of_rl = [e for examples in (task.train, *task.splits.values()) for e in examples]
    of_rl = {e.images[0].tobytes() for e in of_rl}
    pretrained = {p.images[0].tobytes() for p in draw_pool("portrait", 0, 300, 16, seed=0)}
    assert len(pretrained) == 300 and not pretrained & of_rl


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

ASKED = Question("genus", "Which genus?", "Solara", "yellow petals")


def fraction(hits) -> float:
    hits = list(hits)
    assert len(hits) >= DRAWS
    return sum(hits) / len(hits)


def test_the_thinking_format_is_kept_as_often_as_stated():
    rng = random.Random(0)
    turns = [respond(ASKED, "Solara", "think", rng) for _ in range(DRAWS)]
    assert {question for question, _ in turns} == {full_question("Which genus?", "think")}
    texts = [text for _, text in turns]
    assert abs(fraction(format_reward(t, "think") for t in texts) - P_FORMAT_KEPT) < 0.02
    assert set(texts) == {
        "<think>yellow petals</think><answer>Solara</answer>",
        "<answer>Solara</answer>",
        "Solara",
    }


def test_the_direct_format_slips_half_as_often_for_half_the_slips_are_direct_answers():
    rng = random.Random(0)
    texts = [respond(ASKED, "Solara", "direct", rng)[1] for _ in range(DRAWS)]
    kept = P_FORMAT_KEPT + (1 - P_FORMAT_KEPT) / 2
    assert abs(fraction(format_reward(t, "direct") for t in texts) - kept) < 0.015
    assert set(texts) == {"<answer>Solara</answer>", "Solara"}


def test_a_plain_question_gets_the_bare_answer():
    rng = random.Random(0)
    turns = {respond(ASKED, "Solara", "plain", rng) for _ in range(200)}
    assert turns == {("Which genus?", "Solara")}


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


# ---- boxes ---------------------------------------------------------------------------------------


def boxes_of(answer: str) -> list[list[int]]:
    boxes = json.loads(answer)
    return [boxes] if isinstance(boxes[0], int) else [b["Position"] for b in boxes]


@pytest.mark.parametrize("ask", [ask_det, ask_ground])
def test_noisy_boxes_stay_boxes_and_move_by_one_step_of_the_grid_at_most(ask):
    rng, changed, steps = random.Random(0), [], set()
    pool = scenes(200)
    while len(changed) < DRAWS:
        question = ask(rng, pool[len(changed) % 200])
        if question is None or question.answer == NO_OBJECTS:
            pool[len(changed) % 200] = sample_scene(rng, 2)
            continue
        noisy = noisy_boxes(question.answer, rng)
        changed.append(noisy != question.answer)
        true_boxes, new_boxes = boxes_of(question.answer), boxes_of(noisy)
        assert len(new_boxes) == len(true_boxes)
        for old, new in zip(true_boxes, new_boxes, strict=True):
            assert all(0 <= v <= 1000 for v in new) and new[0] < new[2] and new[1] < new[3]
            pixels = [[round(v * SCENE_SIZE / 1000) for v in box] for box in (old, new)]
            assert new == [round(p * 1000 / SCENE_SIZE) for p in pixels[1]]  # no rounding drift
            steps |= {b - a for a, b in zip(*pixels, strict=True)}
    assert steps == {-GRID, 0, GRID}
    # A noisy answer can move no coordinate at all: 1 in 16 of single boxes, and at the frame.
    assert 0.85 * P_BOX_NOISE < fraction(changed) < 1.08 * P_BOX_NOISE


def test_noise_leaves_the_confidences_and_the_form_of_the_answer_alone():
    rng = random.Random(0)
    answer = '[{"Position": [125, 125, 500, 500], "Confidence": 0.9}]'
    for _ in range(200):
        noisy = noisy_boxes(answer, rng)
        assert json.loads(noisy)[0]["Confidence"] == 0.9
        assert noisy == json.dumps(json.loads(noisy))


@pytest.mark.parametrize("answer", [NO_OBJECTS, "Solara minor", "yes", "3", "remove(f1)", ""])
def test_noise_leaves_other_answers_alone(answer):
    rng = random.Random(0)
    assert {noisy_boxes(answer, rng) for _ in range(200)} == {answer}


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
                assert told == dict.fromkeys(names, NOT_ASKED) | {"colour": 0}
                continue
            (flower,) = over
            covered += 1
            assert COLOURS[told["colour"] - 1] == flower.colour
            box = [GRID * told[name] for name in ("x0", "y0", "x1", "y1")]
            assert box == [flower.x0, flower.y0, flower.x1, flower.y1]
        assert covered > 0 and all(
            0 <= places[:, i].max() < n for i, n in enumerate(TARGETS.values())
        )


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
    for kind, columns in (("portrait", list(TARGETS)[:4]), ("scene", list(TARGETS))):
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
    pools = (draw_pool(kind, 0, 2, 8 if kind == "portrait" else 12, seed=0) for kind in MAKERS)
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
    examples = as_examples(processor, draw_pool("portrait", 0, 2, 8, seed=0))
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


def test_the_learning_rate_warms_up_and_ends_at_a_hundredth_of_the_peak():
    rates = [learning_rate(step, 300, peak=1e-3) for step in range(300)]
    assert rates[0] == pytest.approx(2e-5) and max(rates) == rates[49] == pytest.approx(1e-3)
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert 1e-5 <= rates[-1] < 1.01e-5 + 1e-6
    assert learning_rate(4, 5, peak=1e-3) == pytest.approx(1e-4)  # a run shorter than the warm-up


@pytest.fixture
def miniature(monkeypatch):
    """Sizes with which `--pretrain` takes a second; the global float precision is put back."""
    pytest.importorskip("sklearn")  # the base sees digits as well
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    sizes |= dict(num_key_value_heads=2, vision_depth=1, vision_embed_dim=32, vision_num_heads=2)
    monkeypatch.setattr(train_sft, "SIZES", sizes | dict(vision_mlp_ratio=2, patch_size=8))
    monkeypatch.setattr(train_sft, "VOCAB_SIZE", 400)
    monkeypatch.setattr(train_sft, "POOL", {"portrait": 6, "scene": 6, "change": 4})
    batch = {"portrait": 2, "scene": 2, "change": 1, "digit": 1}
    monkeypatch.setattr(train_sft, "BATCH", batch)

    def few_texts(pools, count, seed):
        return sample_texts(pools, count // 50, seed)

    monkeypatch.setattr(train_sft, "sample_texts", few_texts)
    precision = torch.get_float32_matmul_precision()
    yield ["--pretrain", "--see_steps", "2", "--talk_steps", "3"]
    torch.set_float32_matmul_precision(precision)


def test_a_run_writes_a_complete_checkpoint_and_repeats_bit_for_bit(miniature, tmp_path, capsys):
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    for directory, seed in ((first, "0"), (again, "0"), (other, "1")):
        train_sft.main([*miniature, "--output_dir", str(directory), "--seed", seed])
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
        pack = train_sft.make_pack([prompt], [[torch.tensor([7])]])
        logp, _ = completion_logps(model, pack)
    assert float(logp[0]) == pytest.approx(float(expected[7]), abs=2e-4)


def test_a_run_keeps_a_journal_and_every_weight_moves(miniature, tmp_path, capsys):
    directory = tmp_path / "base"
    train_sft.main([*miniature, "--output_dir", str(directory)])
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
    assert {"nll/portrait", "nll/scene", "nll/change", "seen/scene"} <= set(rows[2])
    start = train_sft.init_model(Processor(directory).cfg, seed=0)
    trained = load_file(directory / "model.safetensors")
    still = [n for n, p in start.named_parameters() if torch.equal(p.detach(), trained[n])]
    assert still == []


@pytest.mark.parametrize("scale", ["0", "0.2", "-1", "nan", "inf"])
def test_a_pool_smaller_than_a_batch_is_refused_by_flag(scale, miniature, tmp_path):
    with pytest.raises(InputError, match="--pool_scale"):
        train_sft.main([*miniature, f"--pool_scale={scale}", "--output_dir", str(tmp_path / "x")])
