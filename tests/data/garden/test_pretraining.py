"""What pretraining guarantees (data/garden/corpus.py, data/garden/pretrain.py, new checkpoints).

Pictures are functions of seed and number, show what is asked about them, and are not those of RL;
answers are coarse, hasty or out of format exactly as often as the constants say, and never where no
format is asked for; only responses are learned; and a miniature run writes a complete checkpoint,
the same bits for the same seed. Run: pytest tests/data/garden/test_pretraining.py
"""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Qwen2VLForConditionalGeneration

from config import BASE_MODEL, TaskConfig
from data.examples import INSTRUCTIONS, completion_text, full_question
from data.garden import corpus, pretrain, world
from data.garden.corpus import IGNORED, MAKERS, TARGETS, draw_picture, respond
from data.garden.pretrain import dialogue_pack, learning_rate, make_batch
from data.garden.questions import Question
from data.garden.world import CAUSES, SCENE_SIZE, SPECIES, WELL_KNOWN, sample_scene
from data.labelled import DIGIT_NAMES, read_digits
from model.config import FAMILIES
from model.new_checkpoint import CONTROL_TOKENS, init_model
from model.pack import completion_logps, make_pack
from model.processor import Processor
from model.weights import load_model, published_tensors
from rewards import format_reward
from tasks import TASKS, change, cls, order, scenes

DRAWS = 3000  # a fraction of them is off by 0.03 less than once in a thousand seeds
CELLS = dict.fromkeys(("scene", "change", "wilting"), 12) | {"portrait": 8, "growth": 8}


def draw_pool(kind, count, cell=16):
    for number in range(count):
        yield draw_picture(kind, cell, 0, number)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_picture_depends_on_the_seed_and_its_number_alone(kind):
    def content(seed, number):
        picture = draw_picture(kind, 16, seed, number)
        images = [image.tobytes() for image in picture.images]
        return images, picture.talk(random.Random(0)), picture.places.tolist()

    pictures = [content(3, number) for number in range(4)]
    random.seed(99)
    assert content(3, 2) == pictures[2]
    assert len({str(picture) for picture in [*pictures, content(4, 2)]}) == 5


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of every picture that is drawn from now on, as (module, positional, named)."""
    calls = []

    def record(module, draw):
        def blank(*args, **named):
            calls.append((module, args, named))
            return Image.new("RGB", (SCENE_SIZE, SCENE_SIZE))

        monkeypatch.setattr(module, draw, blank)

    for module in (cls, scenes, change, order, corpus):
        for draw in {"draw_flower", "draw_scene", "draw_stage"} & set(vars(module)):
            record(module, draw)
    return calls


def test_no_picture_of_pretraining_has_the_rendering_seed_of_an_rl_task(drawn):
    """The seed decides background, light and rotation, so no picture is known from pretraining."""
    cfg = TaskConfig(shots=2, held_out_per_class=2, train_size=20, held_out_size=20)
    for name in ("cls", "count", "change", "vqa", "order"):
        TASKS[name].load(cfg)
    for kind in MAKERS:
        list(draw_pool(kind, 40))
    rl = {args[-1] for module, args, _ in drawn if module is not corpus}
    pretrained = {args[-1] for module, args, _ in drawn if module is corpus}
    assert len(rl) > 250 and len(pretrained) == 80  # portraits and all others
    assert not rl & pretrained


def test_pictures_show_what_their_questions_are_about(drawn):
    for picture in draw_pool("change", 20):
        (_, (before, seed), _), (_, (after, same_seed), _) = drawn[-2:]
        question = picture.talk.args[0]
        assert seed == same_seed and after == question.after and len(picture.images) == 2
        assert question.seen == ", ".join(p.colour for p in before)
    for picture in draw_pool("wilting", 20, 8):
        _, (scene, _), named = drawn[-1]
        question = picture.talk.args[0]
        causes = {CAUSES[k - 1] for k in picture.places[:, list(TARGETS).index("cause")] if k > 0}
        assert named == {"ailing": question.ailing}
        assert causes == set(question.ailing.values())
    counts = set()
    for picture in draw_pool("growth", 30):
        question, count = picture.talk.args[0], len(picture.images)
        flowers, stages, seeds = zip(*(args for _, args, _ in drawn[-count:]), strict=True)
        assert len(set(flowers)) == len(set(seeds)) == 1
        assert ", ".join(stages) == question.seen
        counts.add((question.kind, count))
    assert counts == {("next", 1), ("order", 3), ("order", 4)}


LOOKS = [("colour", world.COLOURS), ("shape", world.SHAPES), ("petals", world.PETAL_COUNTS)]
LOOKS += [("centre", world.CENTRES)]


@pytest.mark.parametrize("cell", [8, 12, 16])
def test_every_token_has_the_targets_of_the_flower_over_its_middle(cell):
    rng, side = random.Random(1), SCENE_SIZE // cell
    for n in range(40):
        scene, covered = sample_scene(rng, 1 + n % 4), 0
        places = corpus.scene_places(scene, cell)
        assert places.shape == (side * side, len(TARGETS))
        for token, place in enumerate(places):
            x, y = (token % side + 0.5) * cell, (token // side + 0.5) * cell
            flowers = [p for p in scene if p.x0 <= x < p.x1 and p.y0 <= y < p.y1]
            targets = dict(zip(TARGETS, place.tolist(), strict=True))
            expected = dict.fromkeys(TARGETS, IGNORED) | {"colour": 0, "x": x // 4, "y": y // 4}
            for p in flowers:
                expected = {name: values.index(getattr(p.flower, name)) for name, values in LOOKS}
                expected["colour"] += 1  # 0 is the background
                expected |= {name: getattr(p, name) // 4 for name in ("x0", "y0", "x1", "y1")}
                expected |= {"cause": 0, "width": (p.x1 - p.x0) // 4}
                expected |= {"x": (p.x0 + p.x1) // 8, "y": (p.y0 + p.y1) // 8}
            assert targets == expected
            covered += len(flowers)
        assert covered > 0
        assert all(places[:, i].max() < n for i, n in enumerate(TARGETS.values()))


def test_the_digits_of_pretraining_and_of_rl_are_disjoint():
    pytest.importorskip("sklearn")
    pretrained = [picture.images[0].tobytes() for picture in corpus.digit_pictures(16)]
    rl = [item.images[0].tobytes() for item in read_digits("rl")]
    assert (len(pretrained), len(rl)) == (899, 898)
    assert not set(pretrained) & set(rl)


# ---- dialogues -----------------------------------------------------------------------------------

TEMPTING = Question("count", "How many flowers?", "3", "red, red, blue: 3", "2", "red, red, blue")


@pytest.mark.parametrize("mode", INSTRUCTIONS)
def test_formatted_answers_are_hasty_and_keep_the_format_as_often_as_stated_plain_ones_never(mode):
    rng = random.Random(0)
    prompts, texts = zip(*(respond(TEMPTING, mode, rng) for _ in range(DRAWS)), strict=True)
    assert set(prompts) == {full_question("How many flowers?", mode)}
    kept = np.mean([format_reward(text, mode) for text in texts])
    is_direct = mode == "direct"  # where half of the slips, answers without thoughts, are no slips
    assert abs(kept - (corpus.P_FORMAT_KEPT + (1 - corpus.P_FORMAT_KEPT) / 2 * is_direct)) < 0.02
    assert abs(np.mean([bare(text) == "2" for text in texts]) - corpus.P_HASTY) < 0.03
    thoughts = {"2": corpus.HASTY_THOUGHT, "3": TEMPTING.thought}
    reasoning = {a: replace(TEMPTING.reasoning, thought=t) for a, t in thoughts.items()}
    blocks = {completion_text(a, mode, r) for a, r in reasoning.items()}
    assert set(texts) == blocks | {"2", "3", "<answer>2</answer>", "<answer>3</answer>"}
    plain = {respond(TEMPTING, "plain", rng) for _ in range(200)}
    assert plain == {("How many flowers?", "red, red, blue: 3, so 3")}  # careful, with reasoning
    assert respond(replace(TEMPTING, hasty=""), "plain", rng) == ("How many flowers?", "3")


def bare(text: str) -> str:
    return text.rpartition("<answer>")[2].removesuffix("</answer>")


def test_digits_are_named_coarsely_or_finely_but_never_wrongly():
    rng = random.Random(0)
    for value, name in enumerate(DIGIT_NAMES):
        coarse = {"an odd digit" if value % 2 else "an even digit"}
        coarse |= {"a round one"} if name in ("zero", "six", "eight", "nine") else set()
        turns = [turn for _ in range(40) for turn in corpus.digit_talk(value, rng)]
        assert {bare(response) for _, response in turns} == {name, *coarse}


@pytest.mark.parametrize("is_known, expected", [(False, 0.2), (True, 0.85)])
def test_species_are_named_finely_as_often_as_stated(is_known, expected):
    rng, fine = random.Random(0), []
    for species in [s for s in SPECIES if (s in WELL_KNOWN) == is_known] * (DRAWS // 24):
        for question, response in corpus.portrait_talk(species.flower, rng)[:2]:
            assert question.startswith("Which species is this flower?")
            assert bare(response) in (species.name, species.genus)
            fine.append(bare(response) == species.name)
    assert abs(np.mean(fine) - expected) < 0.03


@pytest.fixture(scope="module")
def batch(tiny_dir):
    """Two pictures of every kind with their prompts, and the processor."""
    processor = Processor(tiny_dir)  # tokens of 8 pixels; scenes are first reduced to 64 x 64
    pools = {kind: list(draw_pool(kind, 4, CELLS[kind])) for kind in MAKERS}
    batch = make_batch(pools, dict.fromkeys(MAKERS, 2), processor, random.Random(1))
    return processor, batch


def test_only_responses_and_their_ends_are_learned_weighted_by_the_root_of_their_length(batch):
    processor, examples = batch[0], sum(batch[1].values(), [])
    pack, weights = dialogue_pack(examples, processor, random.Random(5))
    rng = random.Random(5)
    turns = [turn for picture, _ in examples for turn in picture.talk(rng)]
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = [[*processor.encode(response), end] for _, response in turns]
    assert pack.targets.tolist() == sum(ids, [])
    # Every learned token is predicted from the one before it, the first of a response from the last
    # one of the chat template.
    assert torch.equal(pack.ids[pack.predictors + 1], pack.targets)
    firsts = np.cumsum([0, *map(len, ids[:-1])])
    assert set(pack.ids[pack.predictors[firsts]].tolist()) == {processor.template(1)[1][-1]}
    everything = processor.tokenizer.decode(pack.ids)
    assert all(question in everything for question, _ in turns)
    sums = torch.stack([w.sum() for w in weights.split([len(i) for i in ids])])
    torch.testing.assert_close(sums, torch.tensor([len(i) for i in ids]).float().sqrt())


def test_a_packed_dialogue_has_the_log_probabilities_of_separate_ones(batch, tiny_dir):
    processor, examples = batch[0], batch[1]["portrait"] + batch[1]["growth"]
    model = load_model(tiny_dir, torch.float32, torch.device("cpu"))
    rng = random.Random(5)
    separate = [
        (corpus.Picture((), lambda _, turn=turn: [turn], None), prompt)
        for picture, prompt in examples
        for turn in picture.talk(rng)
    ]
    with torch.no_grad():
        packed, _ = completion_logps(model, dialogue_pack(examples, processor, random.Random(5))[0])
        packs = [dialogue_pack([example], processor, rng)[0] for example in separate]
        alone = [completion_logps(model, pack)[0] for pack in packs]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_a_stage_warms_up_ends_at_a_hundredth_of_the_peak_and_takes_fresh_gradients():
    rates = [learning_rate(step, 300, peak=1e-3) for step in range(300)]
    assert rates[0] == pytest.approx(2e-5) and max(rates) == rates[49] == pytest.approx(1e-3)
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert 1e-5 <= rates[-1] < 1.01e-5 + 1e-6
    parameter, rows = torch.nn.Parameter(torch.ones(3)), []
    for step, metrics in pretrain.train_stage("vision", 4, 1e-3, [parameter], rows.append):
        (parameter**2).sum().backward()
        assert torch.equal(parameter.grad, 2 * parameter.detach()), "those of this step alone"
        metrics["loss"] = step
    assert rows[-1]["loss"] == 1.5, "the mean over the steps since the last row"


# ---- the run -------------------------------------------------------------------------------------

MINIATURE_POOL = {"portrait": 6, "scene": 6, "change": 4, "wilting": 3, "growth": 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_perception_heads_teach_the_tower_of_every_family(batch, family, tiny_dirs):
    model = load_model(tiny_dirs[family])
    heads = pretrain.PerceptionHeads(model.cfg.text.hidden_size)
    losses = []
    optimizer = torch.optim.SGD([*model.visual.parameters(), *heads.parameters()], 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(float(pretrain.vision_stage(model, heads, batch[1])["loss"]))
        optimizer.step()
    assert losses[2] < losses[0]
    learnt = [name for name, p in model.visual.named_parameters() if p.grad is not None]
    assert any("blocks.0." in name for name in learnt) and any("merger." in n for n in learnt)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Pretraining at sizes with which it takes a second; returns its directory and log."""
    pytest.importorskip("sklearn")  # the base sees digits as well
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    sizes |= dict(num_key_value_heads=2, vision_depth=1, vision_embed_dim=32, vision_num_heads=2)
    batch = {"portrait": 2, "scene": 2, "change": 1, "wilting": 1, "growth": 1, "digit": 1}
    replacements = dict(SIZES=sizes | dict(vision_mlp_ratio=2, patch_size=8), VOCAB_SIZE=400)
    replacements |= dict(POOL=MINIATURE_POOL, BATCH=batch, VISION_BATCH={"portrait": 3, "scene": 2})
    replacements["sample_texts"] = lambda pools, count, seed: corpus.sample_texts(pools, 40, seed)
    for name, value in replacements.items():
        monkeypatch.setattr(pretrain, name, value)

    def run(name, *flags):
        argv = ["--vision_steps", "2", "--joint_steps", "3", "--output_dir", str(tmp_path / name)]
        pretrain.main([*argv, *flags])
        return tmp_path / name, [json.loads(row) for row in capsys.readouterr().out.splitlines()]

    precision = torch.get_float32_matmul_precision()
    yield run
    torch.set_float32_matmul_precision(precision)


def test_a_run_writes_a_complete_checkpoint_and_a_log_and_repeats_bit_for_bit(run):
    (first, rows), (again, _), (other, _) = run("first"), run("again"), run("other", "--seed", "1")
    files = sorted(path.name for path in first.iterdir())
    assert files == sorted(path.name for path in BASE_MODEL.iterdir())
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in files)
    assert (first / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()

    log = first.with_name("first.pretrain.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row) for row in log] == rows
    steps = [("start", None), ("vision", 2), ("joint", 3), ("done", None)]
    assert [(row["stage"], row.get("step")) for row in rows] == steps
    assert all(math.isfinite(v) for row in rows[1:3] for k, v in row.items() if k != "stage")
    assert rows[0]["pictures"] == MINIATURE_POOL | {"digit": 899}
    assert {f"nll/{kind}" for kind in (*MAKERS, "digit")} <= set(rows[2])
    kinds = {key.removeprefix("accuracy/") for key in rows[2] if key.startswith("accuracy/")}
    assert kinds == {"portrait", "scene", "change", "wilting"}
    trained, processor = load_file(first / "model.safetensors"), Processor(first)
    start = published_tensors(init_model(processor.cfg, seed=0))
    assert not [n for n, p in start.items() if torch.equal(p, trained[n])], "every weight moves"

    # The configuration is the bundled base's, whose token ids are right for any new tokenizer.
    assert processor.tokenizer.convert_tokens_to_ids(CONTROL_TOKENS) == list(range(8))
    # Every coordinate becomes one token, since it occurs often in the tokenizer's corpus.
    assert {f"[{x}, {x}, {x}, {x}]" for x in (0, 42, 958, 1000)} < {*corpus.sample_texts({}, 8, 0)}

    # transformers reads it with every weight in its place, and agrees.
    theirs, info = Qwen2VLForConditionalGeneration.from_pretrained(first, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    image = draw_picture("portrait", 16, 0, 0).images[0]
    prompt = processor.prompt("p", [image], "Which species is this flower?")
    with torch.no_grad():
        inputs = {"input_ids": prompt.ids[None], "pixel_values": prompt.pixels}
        inputs |= {"image_grid_thw": torch.tensor(prompt.grids)}
        inputs |= {"mm_token_type_ids": (prompt.ids == processor.cfg.image_token_id).int()[None]}
        expected = theirs(**inputs).logits[0, -1].log_softmax(-1)
        ours = load_model(first, torch.float32, torch.device("cpu"))
        logp, _ = completion_logps(ours, make_pack([prompt], [[torch.tensor([7])]]))
    assert float(logp[0]) == pytest.approx(float(expected[7]), abs=1e-3)
