"""Other VLMs through transformers: a group by one forked prefill is the group by repeated rows.

The models are random and tiny, in directories as the hub has them. The oracle is transformers'
own forward of every completion behind its prompt, without a cache.
"""

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from model import transformers_vlm
from model.config import FAMILIES, OTHER_FAMILIES
from model.load import check_files_fit, load_model, load_processor, save_model
from model.pack import completion_logps, make_pack
from model.transformers_vlm import TransformersVLM
from runtime.errors import InputError
from sample import generate_group
from tests.model import other_families

TEMPERATURE = 0.8


def picture(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def some_prompts(processor):
    """Prompts of different lengths, with one image, two and none where the family takes that."""
    first, second = picture(50, 40, 1), picture(30, 90, 2)
    prompts = [
        processor.prompt("a", [first], "Which species is this flower?"),
        processor.prompt("b", [second], "Where is the red flower? Look at the picture. Answer."),
    ]
    if not processor.family.needs_image:
        prompts.append(processor.prompt("c", [first, second], "Which?"))
        prompts.append(processor.prompt("d", [], "Which species?"))
    return prompts


@pytest.fixture(scope="module", params=OTHER_FAMILIES)
def tiny(request, other_dirs):
    directory = other_dirs[request.param]
    return load_model(directory), load_processor(directory), directory


def some_rollout(model, processor, prompts, G=3):
    """A rollout with an ended row, a row of one token, and rows that are cut."""
    rollout = generate_group(model, processor, prompts, G, 9, TEMPERATURE, seed=3)
    rollout.ids = [ids.clone() for ids in rollout.ids]  # inference tensors
    rollout.ids[0], rollout.logps[0] = rollout.ids[0][:1], rollout.logps[0][:1]
    rollout.ids[-1], rollout.logps[-1] = rollout.ids[-1][:4], rollout.logps[-1][:4]
    return rollout


def reference_logps(model, processor, prompt, ids):
    """Log-probabilities (C,) of one completion: one row, no cache, transformers alone."""
    inputs = dict(prompt.inputs)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:  # new tokens are text
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(ids)))
    if model.has_mrope:
        model.source.model.rope_deltas = None
    row = torch.cat([prompt.ids, ids])[None]
    hidden = model.source(input_ids=row, **inputs, use_cache=False).logits[0]
    logits = hidden[len(prompt.ids) - 1 : -1] @ model.head_weight.T / TEMPERATURE
    logits = logits.masked_fill(processor.suppressed_tokens, float("-inf"))
    return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]


def gradients(model, logps):
    """Every gradient of a random weighting of the log-probabilities."""
    weights = torch.linspace(-1, 1, len(logps))
    model.zero_grad()
    (logps * weights).sum().backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def test_sampler_trainer_and_repeated_rows_agree_in_every_gradient(tiny):
    model, processor, _ = tiny
    model.prepare_training(freeze_vision=False, gradient_checkpointing=False)
    prompts = some_prompts(processor)
    rollout, G = some_rollout(model, processor, prompts), 3
    groups = [rollout.ids[n * G : n * G + G] for n in range(len(prompts))]
    pack = make_pack(prompts, groups)
    logps, entropy = completion_logps(model, pack, TEMPERATURE, processor.suppressed_tokens)
    # Linear attention: in chunks when training, token by token when sampling; other chunks in a row
    # that holds the prompt, too.
    tolerance = 1e-4 if model.has_mrope else 1e-5
    torch.testing.assert_close(logps, torch.cat(rollout.logps), atol=tolerance, rtol=0)
    assert bool((entropy > 0).all())
    ours = gradients(model, logps)
    rows = [
        reference_logps(model, processor, prompt, ids)
        for prompt, group in zip(prompts, groups, strict=True)
        for ids in group
    ]
    torch.testing.assert_close(logps, torch.cat(rows), atol=tolerance, rtol=0)
    theirs = gradients(model, torch.cat(rows))
    # A bias of keys has no gradient in truth: rounding errors, far below the largest gradient.
    floor = 1e-4 * max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        scale = max(float(gradient.abs().max()), floor)
        assert float((ours[name] - gradient).abs().max()) < 1e-3 * scale, name
    assert sum(bool(gradient.any()) for gradient in ours.values()) > 0.7 * len(ours)


def test_an_answer_depends_on_the_picture_and_not_on_the_batch(tiny):
    model, processor, _ = tiny
    prompts = some_prompts(processor)
    together = generate_group(model, processor, prompts, 2, 24, seed=1)
    for n, prompt in enumerate(prompts):
        alone = generate_group(model, processor, [prompt], 2, 24, seed=1)
        for g in range(2):
            assert together.ids[2 * n + g].tolist() == alone.ids[g].tolist()
            torch.testing.assert_close(together.logps[2 * n + g], alone.logps[g], atol=1e-4, rtol=0)
    other = processor.prompt("a", [picture(50, 40, 8)], "Which species is this flower?")
    assert len(other.ids) == len(prompts[0].ids)
    seen = generate_group(model, processor, [other], 1, 1, temperature=0).logps[0]
    assert abs(seen - generate_group(model, processor, prompts[:1], 1, 1, 0).logps[0]) > 1e-3


def test_finished_groups_leave_the_cache(tiny, monkeypatch):
    """The second prompt's rows end at once; the first's go on alone, with the same tokens."""
    model, processor, _ = tiny
    prompts, kept = some_prompts(processor)[:2], []
    keep = transformers_vlm.TransformersRows.keep
    watched = lambda rows, groups: kept.append(groups.tolist()) or keep(rows, groups)  # noqa: E731
    monkeypatch.setattr(transformers_vlm.TransformersRows, "keep", watched)
    never = processor.suppressed_tokens.nonzero()[-1].item()
    for seed in range(50):  # one whose second prompt alone draws some token in both rows
        monkeypatch.setattr(processor, "end_ids", [never])
        full = [
            ids.tolist() for ids in generate_group(model, processor, prompts, 2, 24, seed=seed).ids
        ]
        ends = [[id for id in row[:7] if id not in full[0] + full[1]] for row in full[2:]]
        if all(ends):
            break
    monkeypatch.setattr(processor, "end_ids", [row[-1] for row in ends])
    short = generate_group(model, processor, prompts, 2, 24, seed=seed).ids
    assert kept == [[0]]
    assert [ids.tolist() for ids in short[:2]] == full[:2]
    for ids, row in zip(short[2:], full[2:], strict=True):
        assert len(ids) <= 7 and ids.tolist() == row[: len(ids)]


def test_a_prompt_is_what_transformers_own_template_gives(tiny):
    model, processor, directory = tiny
    if processor.tokenizer.chat_template == processor.family.template:
        words = processor.tokenizer.decode(processor.prompt("a", [picture(9, 9, 0)], "Who?").ids)
        assert words.endswith("Question: Who? Answer:" if "blip-2" in str(directory) else "Who?")
        return
    content = [{"type": "image"}, {"type": "text", "text": "Which species is this flower?"}]
    theirs = processor.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    image = picture(50, 40, 1)
    bos = processor.tokenizer.bos_token or "no bos"
    expected = processor.processor(
        text=theirs,
        images=[image],
        add_special_tokens=not theirs.startswith(bos),
        return_tensors="pt",
    )
    ours = processor.prompt("a", [image], "Which species is this flower?")
    assert ours.ids.tolist() == expected["input_ids"][0].tolist()
    for name, value in ours.inputs.items():
        assert torch.equal(value, expected[name])


def test_saving_writes_the_files_of_the_source(tiny, tmp_path):
    model, processor, directory = tiny
    save_model(model, tmp_path / "same", directory)
    before, after = (load_file(d / "model.safetensors") for d in (directory, tmp_path / "same"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    names = lambda d: {str(p.relative_to(d)) for p in d.rglob("*")}  # noqa: E731
    assert names(directory) == names(tmp_path / "same")
    changed = load_model(directory)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter += 1
    save_model(changed, tmp_path / "changed", directory)
    again = load_model(tmp_path / "changed")
    for (name, a), (_, b) in zip(changed.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(InputError, match="not saved, since .* is not finite"):
        with torch.no_grad():
            next(changed.parameters()).fill_(float("nan"))
        save_model(changed, tmp_path / "broken", directory)


LAYOUTS = {
    "of the hub": {"vision_tower.": "vision_tower.vision_model."},
    "of transformers 4.52": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head": "lm_head",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_every_layout_of_keys_is_read_and_written_back(family, layout, other_dirs, tmp_path):
    source, tensors = shutil.copytree(other_dirs[family], tmp_path / "source"), {}
    for key, value in load_file(source / "model.safetensors").items():
        for old, new in LAYOUTS[layout].items():
            if key.startswith(old):
                key = new + key.removeprefix(old)
                break
        tensors[key] = value
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    model, plain = load_model(source), load_model(other_dirs[family])
    for (name, a), (_, b) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    save_model(model, tmp_path / "saved", source)
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("qwen3_5", "mtp.fc.weight", torch.randn(3, 4)),  # its files hold a draft head
        ("instructblip", "qformer.embeddings.position_ids", torch.arange(128)[None]),  # old ones
    ],
)
def test_what_transformers_leaves_out_is_copied(family, key, value, other_dirs, tmp_path):
    source = shutil.copytree(other_dirs[family], tmp_path / "source")
    tensors = load_file(source / "model.safetensors") | {key: value}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    save_model(load_model(source), tmp_path / "saved", source)
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == tensors.keys()
    assert all(torch.equal(saved[key], tensors[key]) for key in tensors)


def test_a_frozen_vision_tower_leaves_the_language_model_trainable(tiny):
    model, _, _ = tiny
    model.prepare_training(freeze_vision=True, gradient_checkpointing=False)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, _ in model.named_parameters():
        is_vision = any(word in name for word in ("vision", "visual", "qformer", "query_tokens"))
        is_bridge = any(word in name for word in ("project", "connector", "newline"))
        assert (name in trained) == (not is_vision and not is_bridge), name
    model.prepare_training(freeze_vision=False, gradient_checkpointing=False)


def test_a_control_token_in_a_question_is_refused(tiny):
    _, processor, _ = tiny
    word = processor.control_tokens[-1]
    with pytest.raises(InputError, match="prompt q: the question contains .* a control token"):
        processor.prompt("q", [picture(9, 9, 0)], f"Is this {word} a flower?")


# ---- refusals, on one family -----------------------------------------------------------------


@pytest.fixture
def llava(other_dirs, tmp_path):
    return shutil.copytree(other_dirs["llava"], tmp_path / "llava")


def edit_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_family_that_nobody_tried_is_refused_with_the_list(llava):
    edit_config(llava, model_type="paligemma")
    for load in (load_model, load_processor):
        with pytest.raises(InputError, match="'paligemma'.*Qwen3-VL.*LLaVA.*InstructBLIP"):
            load(llava)


def test_damaged_files_are_refused_in_one_line(llava):
    tensors = load_file(llava / "model.safetensors")
    key = sorted(tensors)[5]
    save_file({k: v for k, v in tensors.items() if k != key}, llava / "model.safetensors")
    with pytest.raises(InputError, match=r"llava: 1 missing keys, first '.*'; does config.json"):
        load_model(llava)
    save_file(tensors | {"extra.weight": torch.zeros(2)}, llava / "model.safetensors")
    with pytest.raises(InputError, match="llava: 1 unexpected keys, first 'extra.weight'"):
        load_model(llava)
    save_file(tensors | {key: torch.zeros(3, 3, 3)}, llava / "model.safetensors")
    with pytest.raises(InputError, match="llava: 1 mismatched keys, first .*3, 3, 3"):
        load_model(llava)
    (llava / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="llava: cannot be read"):
        load_processor(llava)


def test_an_encoder_decoder_is_refused(other_dirs):
    source = transformers.AutoModelForImageTextToText.from_pretrained(other_dirs["blip-2"])
    source.config.text_config.is_encoder_decoder = True
    with pytest.raises(InputError, match="encoder-decoder"):
        transformers_vlm.check_computed(source, other_dirs["blip-2"])


def test_a_head_that_is_more_than_a_product_is_refused(other_dirs):
    source = transformers.AutoModelForImageTextToText.from_pretrained(other_dirs["gemma3"])
    source.config.text_config.final_logit_softcapping = 30.0
    with pytest.raises(InputError, match="soft cap"):
        transformers_vlm.check_computed(source, other_dirs["gemma3"])


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
@pytest.mark.parametrize("family", ["smolvlm", "internvl", "qwen3_5"])
def test_what_a_processor_needs_is_named(family, other_dirs, monkeypatch):
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", other_families.READ)
    with pytest.raises(InputError, match="needs torchvision; pip install torchvision"):
        load_processor(other_dirs[family])


def test_a_question_that_the_query_transformer_cannot_read_is_refused(other_dirs):
    processor = load_processor(other_dirs["instructblip"])
    with pytest.raises(InputError, match=r"prompt q: \d+ tokens for the query transformer, .* 128"):
        processor.prompt("q", [picture(9, 9, 0)], "Which flower is it? " * 40)


def test_flags_of_the_hand_written_path_are_refused(llava):
    with pytest.raises(InputError, match="--max_pixels: .*llava sets the size"):
        load_processor(llava, max_pixels=4096)


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_a_model_that_would_not_see_the_picture_is_refused(family, other_dirs, tmp_path):
    """BLIP-2 without the number of its query tokens would answer blindly; so would a wrong id."""
    directory = shutil.copytree(other_dirs[family], tmp_path / "copy")
    if family == "blip-2":
        (directory / "processor_config.json").unlink()
        with pytest.raises(InputError, match="has no processor_config.json: copy them|no place"):
            load_processor(directory).prompt("p", [picture(9, 9, 0)], "Who?")
        shutil.copy(other_dirs[family] / "processor_config.json", directory)
    raw = json.loads((directory / "config.json").read_text())
    for name in ("image_token_id", "image_token_index"):
        if name in raw:
            raw[name] = 40
    (directory / "config.json").write_text(json.dumps(raw))
    processor, model = load_processor(directory), load_model(directory)
    with pytest.raises(InputError, match="prompt p: (no place for its|transformers refuses)"):
        check_files_fit(model, processor.prompt("p", [picture(9, 9, 0)], "Who?"))


@pytest.mark.parametrize("family", ["gemma3", "instructblip", "llava"])
def test_preprocessing_of_another_model_is_one_line(family, other_dirs, tmp_path):
    directory = shutil.copytree(other_dirs[family], tmp_path / "copy")
    path = directory / "preprocessor_config.json"
    raw = json.loads(path.read_text()) | {"size": {"height": 56, "width": 56}}
    path.write_text(json.dumps(raw | {"crop_size": {"height": 56, "width": 56}}))
    processor, model = load_processor(directory), load_model(directory)
    with pytest.raises(InputError, match="prompt p: .*belong together|prompt p: .*transformers"):
        check_files_fit(model, processor.prompt("p", [picture(9, 9, 0)], "Who?"))


def test_learned_positions_end(other_dirs):
    processor = load_processor(other_dirs["blip-2"])
    processor.check_lengths(472, 40)
    with pytest.raises(
        InputError, match="--max_prompt_length 2048: BLIP-2 has 512 positions; .*472"
    ):
        processor.check_lengths(2048, 40)
    load_processor(other_dirs["llava"]).check_lengths(10**6, 10**6)


def test_what_transformers_says_unclearly_is_said_clearly(llava):
    with pytest.raises(InputError, match="prompt p|no valid Unicode"):
        load_processor(llava).prompt("p", [], "half \ud800")
    edit_config(llava, quantization_config={"quant_method": "awq"})
    with pytest.raises(InputError, match="config.json: weights are quantised; take the original"):
        load_processor(llava)
    edit_config(llava, quantization_config=None)
    (llava / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="tokenizer.json: a git-lfs pointer; run git lfs pull"):
        load_processor(llava)


@pytest.mark.parametrize("images", [0, 2])
def test_blip_2_takes_one_image(other_dirs, images):
    processor = load_processor(other_dirs["blip-2"])
    with pytest.raises(InputError, match=f"BLIP-2 takes exactly one image, not {images}"):
        processor.prompt("a", [picture(9, 9, 0)] * images, "Who?")


def test_a_long_prompt_is_refused(other_dirs):
    processor = load_processor(other_dirs["llava"])
    with pytest.raises(InputError, match="--max_prompt_length is 20; raise it"):
        processor.prompt("a", [picture(9, 9, 0)], "Who?", 20)


def test_bfloat16_stays_close(other_dirs):
    """The slow path in bf16: log-probabilities within 0.1 nats of fp32 on average."""
    directory = other_dirs["llava"]
    processor, exact = load_processor(directory), load_model(directory)
    rounded = load_model(directory, torch.bfloat16)
    assert isinstance(rounded, TransformersVLM) and rounded.head_weight.dtype == torch.bfloat16
    prompts = some_prompts(processor)
    rollout = some_rollout(exact, processor, prompts)
    groups = [rollout.ids[n * 3 : n * 3 + 3] for n in range(len(prompts))]
    logps = [completion_logps(m, make_pack(prompts, groups))[0] for m in (exact, rounded)]
    assert (logps[0] - logps[1]).abs().mean() < 0.1


def test_the_table_names_families_once():
    names = [family.name for family in (*FAMILIES.values(), *OTHER_FAMILIES.values())]
    assert len({*names}) == len(names) and not FAMILIES.keys() & OTHER_FAMILIES.keys()
