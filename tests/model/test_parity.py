"""The hand-written model equals transformers' three Qwen-VL classes, weight for weight.

Small random configurations are saved by transformers and loaded through `model/weights.py`: tied
and untied embeddings, ratios of query to key heads from 1 to 8, prompts with no image, with one,
and with several of different size, some smaller than a window, and batches of different lengths
(padded there, packed here). Logits agree to 1e-5, every parameter gradient to 1e-4, 20 greedy
tokens and the M-RoPE positions exactly; files saved here load there with equal tensors. In bf16
log-probabilities are as near to fp32 as transformers' own are.
"""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from model.attention import KVCache, PackLayout
from model.config import FAMILIES
from model.language import DecodingStep, mrope
from model.vlm import Prompt, rope_positions
from model.weights import load_model, published_name, published_tensors, save_model
from tests.model.families import random_reference

PADDING, START, END, IMAGE = 2, 3, 4, 6
CONFIGS = {  # tied, query heads, key heads, blocks of the tower
    "tied, 4 heads on 2": (True, 4, 2, 4),
    "untied, 4 heads on 1": (False, 4, 1, 3),
    "tied, 3 heads on 3": (True, 3, 3, 5),
    "untied, 6 heads on 1": (False, 6, 1, 4),
    "tied, 7 heads on 1": (True, 7, 1, 4),
    "untied, 8 heads on 1": (False, 8, 1, 4),
}
GRIDS = {
    "no image": [],
    "one image": [(1, 4, 6)],
    "two images": [(1, 4, 4), (1, 2, 8)],
    "three images": [(1, 10, 6), (1, 2, 2), (1, 8, 12)],
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module", params=CONFIGS, ids=list(CONFIGS))
def pair(request, family, tmp_path_factory):
    """(transformers model, ours), the same random weights."""
    torch.manual_seed(0)
    reference = random_reference(family, *CONFIGS[request.param])
    directory = tmp_path_factory.mktemp("reference")
    reference.save_pretrained(directory)
    return reference, load_model(directory)


def question(grids, tokens: int, seed: int) -> torch.Tensor:
    """Random words with image slots between them: (P,) ids."""
    words = torch.randint(7, 151, (tokens,), generator=torch.Generator().manual_seed(seed))
    parts = [words[:3]]
    for t, h, w in grids:
        image = torch.full((t * h * w // 4,), IMAGE)
        parts += [torch.tensor([START]), image, torch.tensor([END]), words[3:5]]
    return torch.cat([*parts, words[5:]])


def pixels_for(grids, seed: int = 1) -> torch.Tensor | None:
    patches = sum(t * h * w for t, h, w in grids)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(patches, 3 * 2 * 4 * 4, generator=generator) if patches else None


def inputs_of(reference, ids, pixels, grids) -> dict[str, torch.Tensor]:
    """Inputs of transformers' forward and generate for rows of ids (N, P)."""
    inputs = dict(input_ids=ids, attention_mask=(ids != PADDING).long())
    inputs["mm_token_type_ids"] = (ids == reference.config.image_token_id).int()
    if grids:
        inputs |= dict(pixel_values=pixels, image_grid_thw=torch.tensor(grids))
    return inputs


def our_forward(model, rows, grids_per_row, pixels):
    """Logits of several prompts packed end to end: (T, V)."""
    sizes = [sum(t * h * w for t, h, w in grids) for grids in grids_per_row]
    parts = [None] * len(rows) if pixels is None else pixels.split(sizes)
    prompts = [
        Prompt("", ids, rope_positions(ids, grids, model.cfg), part if grids else None, grids)
        for ids, grids, part in zip(rows, grids_per_row, parts, strict=True)
    ]
    positions = torch.cat([prompt.positions for prompt in prompts], dim=1)
    layout = PackLayout([len(r) for r in rows], [[] for _ in rows])
    return model.logits(model(torch.cat(rows), positions, layout, prompts))


@pytest.mark.case("O7")
@pytest.mark.parametrize("grids", GRIDS.values(), ids=list(GRIDS))
def test_positions_logits_and_every_parameter_gradient_equal_transformers(pair, grids):
    reference, model = pair
    ids, pixels = question(grids, 9, seed=0), pixels_for(grids)
    inputs = inputs_of(reference, ids[None], pixels, grids)
    positions, _ = reference.model.get_rope_index(
        **{key: value for key, value in inputs.items() if key != "pixel_values"}
    )
    assert torch.equal(rope_positions(ids, grids, model.cfg), positions[:, 0])
    theirs = reference(**inputs).logits[0]
    ours = our_forward(model, [ids], [grids], pixels)
    assert theirs.std() > 0.3
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max().clamp(min=1)
    assert compare_gradients(reference, theirs, model, ours) > 20


@pytest.mark.case("O7")
def test_a_packed_batch_equals_transformers_padded_batch(pair):
    reference, model = pair
    grids = [GRIDS["two images"], GRIDS["no image"], GRIDS["one image"]]
    rows = [question(g, 8 + 3 * i, seed=i) for i, g in enumerate(grids)]
    flat = [g for row in grids for g in row]
    pixels = pixels_for(flat)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)
    theirs = reference(**inputs_of(reference, ids, pixels, flat)).logits[ids != PADDING]  # (T, V)
    ours = our_forward(model, rows, grids, pixels)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max().clamp(min=1)
    assert compare_gradients(reference, theirs, model, ours) > 40


def compare_gradients(reference, theirs, model, ours) -> int:
    """Every parameter gradient of a random weighting of the logits; returns how many there are."""
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    reference.zero_grad()
    model.zero_grad()
    (theirs * weights).sum().backward()
    (ours * weights).sum().backward()
    gradients = {published_name(n): p.grad for n, p in reference.named_parameters()}
    twin = copy.deepcopy(model)  # with our gradients as weights, to be named as in the files
    for weight, parameter in zip(twin.parameters(), model.parameters(), strict=True):
        weight.data = torch.zeros_like(weight) if parameter.grad is None else parameter.grad
    compared = 0
    for name, gradient in published_tensors(twin).items():
        if gradients[name] is None:  # the vision tower, when there is no image
            assert name.startswith("visual.") and not gradient.any()
            continue
        scale = gradients[name].abs().max().clamp(min=1e-3)
        assert (gradient - gradients[name]).abs().max() < 1e-4 * scale, name
        compared += 1
    return compared


def with_weights(model, dtype: torch.dtype):
    """A copy with weights rounded to bf16 and stored in `dtype`; its rotary frequencies, which are
    buffers, stay in fp32 as they do where a checkpoint is loaded in bf16."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().to(dtype)
    return model


def test_bfloat16_is_about_as_near_to_fp32_as_transformers_bfloat16_is(pair, family):
    """Mean |delta log p| of random tokens. The fp32 forward has the same rounded weights."""
    reference, model = pair
    grids = [GRIDS["two images"], GRIDS["no image"], GRIDS["one image"]] * 8
    rows = [question(g, 40 + i % 5, seed=i) for i, g in enumerate(grids)]
    flat = [g for row in grids for g in row]
    pixels = pixels_for(flat)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)
    inputs, targets = inputs_of(reference, ids, pixels, flat), torch.cat(rows).roll(-1)  # (T,)

    def logp(logits: torch.Tensor) -> torch.Tensor:
        return -cross_entropy(logits.float(), targets, reduction="none")  # (T,)

    with torch.inference_mode():
        ours = logp(our_forward(with_weights(model, torch.bfloat16), rows, grids, pixels))
        theirs, exact = (
            logp(with_weights(reference, dtype)(**inputs).logits[ids != PADDING])
            for dtype in (torch.bfloat16, torch.float32)
        )
    ours, theirs = (float((part - exact).abs().mean()) for part in (ours, theirs))
    print(f"{family}: ours {ours:.4f}, transformers {theirs:.4f}, ratio {ours / theirs:.2f}")
    assert 1e-3 < ours < 1.5 * theirs


@pytest.mark.case("O9")
@pytest.mark.parametrize("grids", GRIDS.values(), ids=list(GRIDS))
def test_twenty_greedy_tokens_with_our_cache_equal_transformers_generate(pair, grids):
    reference, model = pair
    ids, pixels = question(grids, 9, seed=4), pixels_for(grids)
    theirs = reference.generate(
        **inputs_of(reference, ids[None], pixels, grids),
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
    )[0, len(ids) :]
    positions = rope_positions(ids, grids, model.cfg)
    cache = KVCache(group_size=1, max_suffix=20)
    with torch.inference_mode():
        prompt = Prompt("", ids, positions, pixels, grids)
        hidden = model(ids, positions, PackLayout([len(ids)], [[]]), [prompt], cache)[-1:]
        step, ours = DecodingStep(model.model, cache), []
        for t in range(20):
            logits = model.logits(hidden)
            logits[:, 1] = float("-inf")  # min_new_tokens suppresses the end token
            ours.append(int(logits.argmax()))
            position = torch.full((3, 1), int(positions.max()) + 1 + t)
            words = model.embed(torch.tensor(ours[-1:]), None)
            hidden = step(words, mrope(position, model.cfg.text))
    assert ours == theirs.tolist()


@pytest.mark.case("O21")
def test_files_saved_here_load_there_with_nothing_missing_and_equal_tensors(pair, tmp_path):
    reference, model = pair
    reference.save_pretrained(tmp_path / "source")
    save_model(model, tmp_path / "ours", tmp_path / "source")
    theirs, info = type(reference).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for ours, source in zip(theirs.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, source)
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("source", "ours")]
    assert files[0].keys() == files[1].keys()
