"""The hand-written model equals transformers' Qwen2VLForConditionalGeneration, weight for weight.

Several small random configurations are saved by transformers and loaded through `model/weights.py`:
tied and untied embeddings, three ratios of query to key heads, prompts with no image, one, and two
of different size, and batches of different lengths (padded there, packed here). Logits agree to
1e-5, every parameter gradient to 1e-4, 20 greedy tokens and the M-RoPE positions exactly.
"""

import copy

import pytest
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from model.attention import KVCache, PackLayout
from model.language import DecodingStep, mrope
from model.vlm import Prompt, rope_positions
from model.weights import load_model, published_name, published_tensors

PADDING, START, END, IMAGE, VIDEO = 2, 3, 4, 5, 6
CONFIGS = {
    "tied, 4 heads on 2": dict(tied=True, heads=4, kv=2, depth=2),
    "untied, 4 heads on 1": dict(tied=False, heads=4, kv=1, depth=1),
    "tied, 3 heads on 3": dict(tied=True, heads=3, kv=3, depth=3),
}
GRIDS = {"no image": [], "one image": [(1, 4, 6)], "two images": [(1, 4, 4), (1, 2, 8)]}


@pytest.fixture(scope="module", params=CONFIGS, ids=list(CONFIGS))
def pair(request, tmp_path_factory):
    """(transformers model, ours), the same random weights."""
    sizes = CONFIGS[request.param]
    torch.manual_seed(0)
    D = 16 * sizes["heads"]
    rope = dict(rope_type="default", type="mrope", mrope_section=[2, 3, 3], rope_theta=1e4)
    # Large weights: differences between tokens are visible.
    text = dict(hidden_size=D, intermediate_size=72, vocab_size=151, initializer_range=0.2)
    text |= dict(num_hidden_layers=2, num_attention_heads=sizes["heads"], rms_norm_eps=1e-6)
    text |= dict(num_key_value_heads=sizes["kv"], bos_token_id=0, eos_token_id=1)
    vision = dict(depth=sizes["depth"], embed_dim=32, hidden_size=D, num_heads=2, mlp_ratio=2)
    vision |= dict(patch_size=4, spatial_merge_size=2, temporal_patch_size=2, initializer_range=0.2)
    config = Qwen2VLConfig(
        text_config=text | {"rope_parameters": rope},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=sizes["tied"],
    )
    reference = Qwen2VLForConditionalGeneration(config).eval()
    with torch.no_grad():  # transformers starts biases at zero and norms at one
        for parameter in reference.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
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
    ids = torch.cat(rows)
    positions = [rope_positions(r, g, model.cfg) for r, g in zip(rows, grids_per_row, strict=True)]
    grids = [g for row in grids_per_row for g in row]
    prompt = Prompt("", ids, torch.cat(positions, 1), pixels, grids)  # one: images in their order
    layout = PackLayout([len(r) for r in rows], [[] for _ in rows])
    return model.logits(model(ids, prompt.positions, layout, [prompt]))


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
