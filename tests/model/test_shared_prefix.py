"""A packed group [prefix | c_1 | .. | c_G] equals G separate sequences [prefix | c_i].

The separate sequences run through the plain causal path, which tests/model/test_parity.py ties to
transformers. Log-probabilities, entropies and every parameter gradient must agree; a completion
must see its own image and nothing of its neighbours.
"""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.distributions import Categorical

from config import BASE_MODEL
from model import attention, language, vlm
from model.attention import PackLayout
from model.config import FAMILIES
from model.pack import completion_logps, make_pack
from model.processor import Processor
from model.vlm import rope_positions
from model.weights import load_model


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request, tiny_dirs):
    return load_model(tiny_dirs[request.param]), Processor(tiny_dirs[request.param])


def picture(seed: int, height: int, width: int):
    """Random patches of an image that the processor would give: (patches, grid)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(height * width, 3 * 2 * 4 * 4, generator=generator), (1, height, width)


def some_groups(processor, seed: int = 0):
    """Three prompts (one image, none, two images) with ragged completions."""
    generator = torch.Generator().manual_seed(seed)
    pictures = [[picture(seed, 8, 8)], [], [picture(seed + 1, 4, 8), picture(seed + 2, 8, 10)]]
    prompts, completions = [], []
    for n, patches in enumerate(pictures):
        before, after = processor.template(len(patches))
        question = processor.encode("Which species is this flower?"[: 12 + 5 * n])
        prompts.append(processor.assemble(f"p{n}", before + question + after, patches))
        lengths = torch.randint(1, 9, (4,), generator=generator).tolist()
        lengths[n] += 20 * n  # unlike the others: padded in a batch of its own
        completions.append([torch.randint(20, 200, (n,), generator=generator) for n in lengths])
    return prompts, completions


def separate_logps(model, prompt, completion, temperature, suppressed):
    """Log-probabilities of one completion by an ordinary causal forward of the whole sequence."""
    P, C = len(prompt.ids), len(completion)
    ids = torch.cat((prompt.ids, completion))  # (P + C,)
    after = (torch.arange(C) + prompt.next_position).expand(3, C)
    positions = torch.cat((prompt.positions, after), dim=1)  # (3, P + C)
    hidden = model(ids, positions, PackLayout([P + C], [[]]), [prompt])
    logits = model.logits(hidden[P - 1 : -1]).float() / temperature  # (C, V)
    logp = logits.masked_fill(suppressed, float("-inf")).log_softmax(-1)
    return logp.gather(1, completion[:, None]).squeeze(1)  # (C,)


def gradients(model):
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return grads


def assert_close(gradients, expected, tolerance):
    assert gradients.keys() == expected.keys() and len(expected) > 40
    for name, gradient in gradients.items():
        scale = expected[name].abs().max().clamp(min=1e-3)
        assert (gradient - expected[name]).abs().max() <= tolerance * scale, name


@pytest.mark.case("O8", "O10")
@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_logps_and_gradients_equal_the_repeated_computation(tiny, temperature, precision):
    model, processor = tiny
    prompts, completions = some_groups(processor)
    weights = torch.randn(sum(len(c) for group in completions for c in group))
    torch.set_float32_matmul_precision(precision)  # the textbook form of attention under "medium"
    try:
        repeated = [
            separate_logps(model, prompt, ids, temperature, processor.suppressed_tokens)
            for prompt, group in zip(prompts, completions, strict=True)
            for ids in group
        ]
        repeated = torch.cat(repeated)  # (C,)
        (repeated * weights).sum().backward()
        expected = gradients(model)
        pack = make_pack(prompts, completions)
        packed, entropy = completion_logps(model, pack, temperature, processor.suppressed_tokens)
        (packed * weights).sum().backward()
        layout = PackLayout([len(prompts[0].ids)], [[]])
        hidden = model(prompts[0].ids, prompts[0].positions, layout, prompts[:1])  # (P, D)
        logits = model.logits(hidden[-1]) / temperature  # (V,), of the first completion token
    finally:
        torch.set_float32_matmul_precision("highest")
    # bf16 products of "medium" depend on how the rows are grouped; float32 sums hardly do
    tolerance = 1e-5 if precision == "highest" else 0.1
    logits = logits.masked_fill(processor.suppressed_tokens, float("-inf"))
    assert (entropy[0] - Categorical(logits=logits).entropy()).abs() < tolerance
    assert (packed - repeated).abs().max() < tolerance
    assert_close(gradients(model), expected, tolerance)


def bottom_right_attention(q, k, v, query_ends, key_ends, max_q, max_k):
    """What a flash kernel computes, sequence by sequence: the last query sees the last key."""
    out, R = [], q.shape[1] // k.shape[1]
    for n in range(len(query_ends) - 1):
        queries, keys = slice(*query_ends[n : n + 2]), slice(*key_ends[n : n + 2])
        query, key, value = q[queries], *(x[keys].repeat_interleave(R, dim=1) for x in (k, v))
        assert 0 < len(query) <= max_q and len(query) <= len(key) <= max_k
        scores = torch.einsum("qhe,khe->hqk", query, key) / q.shape[-1] ** 0.5
        hidden = torch.ones(scores.shape[1:]).triu(len(key) - len(query) + 1).bool()
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out.append(torch.einsum("hqk,khe->qhe", weights, value))
    return torch.cat(out)


@pytest.mark.case("O13")
def test_sequences_without_padding_equal_padded_rows(tiny, monkeypatch):
    model, processor = tiny
    prompts, completions = some_groups(processor)
    pack = make_pack(prompts, completions)
    weights = torch.randn(len(pack.targets), generator=torch.Generator().manual_seed(1))
    padded, _ = completion_logps(model, pack)
    (padded * weights).sum().backward()
    expected = gradients(model)
    monkeypatch.setattr(attention, "flash_varlen", bottom_right_attention)
    monkeypatch.setattr(language, "packed_attention", attention.varlen_attention)
    logp, _ = completion_logps(model, pack)
    torch.testing.assert_close(logp, padded, rtol=1e-5, atol=1e-5)
    (logp * weights).sum().backward()
    assert_close(gradients(model), expected, 1e-5)


def test_the_flash_kernel_computes_causal_attention(monkeypatch):
    from torch.nn.attention import varlen

    def stand_in(q, k, v, *bounds, window_size=(-1, -1), enable_gqa=False):
        assert window_size == (-1, 0)  # causal
        assert enable_gqa or q.shape[1] == k.shape[1]
        return bottom_right_attention(q, k, v, *bounds)

    layout = PackLayout([5, 3], [[2, 4], [1]])
    q, k, v = (torch.randn(15, heads, 8) for heads in (4, 2, 2))
    expected = attention.packed_attention(q, k, v, layout)
    monkeypatch.setattr(attention, "flash_attn_varlen_func", None)
    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    torch.testing.assert_close(attention.varlen_attention(q, k, v, layout), expected)


def test_windows_of_all_sizes_go_through_one_call_of_the_flash_kernel(monkeypatch):
    from torch.nn.attention import varlen

    def stand_in(q, k, v, query_ends, key_ends, max_q, max_k, window_size, **_):
        assert window_size == (-1, -1) and torch.equal(query_ends, key_ends)  # both directions
        sizes = query_ends.diff()
        assert max_q == max_k == sizes.max()
        window = torch.arange(len(sizes)).repeat_interleave(sizes)  # (T,) of each token
        scores = torch.einsum("qhe,khe->hqk", q, k) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(window[:, None] != window, -torch.inf)
        return torch.einsum("hqk,khe->qhe", scores.softmax(-1), v)

    monkeypatch.setattr(attention, "flash_attn_varlen_func", None)
    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    runs = attention.Runs([(3, 16), (2, 8), (1, 4)])
    q, k, v = torch.randn(3, 68, 2, 8)
    expected = attention.bidirectional_attention(q, k, v, runs)
    out = attention.flash_varlen(q, k, v, runs.ends, runs.ends, 16, 16, causal=False)
    torch.testing.assert_close(out, expected)


@pytest.mark.case("O13")
def test_recomputing_layers_stores_less_and_changes_no_gradient(tiny):
    model, processor = tiny
    pack = make_pack(*some_groups(processor))

    def update(recompute):
        stored = {}

        def store(tensor):
            stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model.model.gradient_checkpointing = model.visual.gradient_checkpointing = recompute
        with torch.autograd.graph.saved_tensors_hooks(store, lambda tensor: tensor):
            logp, _ = completion_logps(model, pack)
        logp.sum().backward()
        model.model.gradient_checkpointing = model.visual.gradient_checkpointing = False
        return sum(stored.values()), gradients(model)

    (everything, expected), (less, recomputed) = update(False), update(True)
    assert less < everything / 2
    assert_close(recomputed, expected, 0.0)


@pytest.mark.case("O11")
def test_an_image_is_seen_by_its_group_alone_and_a_token_by_its_completion_alone(tiny):
    model, processor = tiny
    prompts, completions = some_groups(processor)
    lengths = [len(ids) for group in completions for ids in group]
    group_2 = slice(sum(lengths[:8]), None)  # four completions per group
    completion_1 = slice(lengths[0], sum(lengths[:2]))
    with torch.no_grad():
        before, _ = completion_logps(model, make_pack(prompts, completions))
        other = replace(prompts[2], pixels=prompts[2].pixels.flip(0))
        after, _ = completion_logps(model, make_pack([*prompts[:2], other], completions))
        assert torch.equal(before[: group_2.start], after[: group_2.start])
        assert ((before - after)[group_2].abs() > 1e-4).all()
        completions[0][1] = (completions[0][1] + 1) % 200 + 20
        after, _ = completion_logps(model, make_pack(prompts, completions))
    assert not torch.equal(before[completion_1], after[completion_1])
    after[completion_1] = before[completion_1]
    assert torch.equal(before, after)


def test_stored_features_give_the_same_logps_and_the_tower_no_gradient(tiny):
    model, processor = tiny
    prompts, completions = some_groups(processor)
    expected, _ = completion_logps(model, make_pack(prompts, completions))
    for prompt in prompts:
        with torch.no_grad():
            prompt.features = model.image_features([prompt])
    logp, _ = completion_logps(model, make_pack(prompts, completions))
    assert torch.allclose(logp, expected, atol=1e-5)
    logp.sum().backward()
    assert not any(name.startswith("visual.") for name in gradients(model))


@pytest.mark.case("O1")
def test_empty_completions_and_images_that_do_not_fit_are_refused(tiny):
    model, processor = tiny
    prompts, completions = some_groups(processor)
    for grids in ([(1, 8, 12)], [(1, 8, 6)], [], [(1, 8, 8)] * 2):  # the slot is that of (1, 8, 8)
        with pytest.raises(ValueError, match="image"):
            rope_positions(prompts[0].ids, grids, processor.cfg)
    with pytest.raises(ValueError, match="does not fit its slot"):
        rope_positions(prompts[2].ids, prompts[2].grids[::-1], processor.cfg)
    prompts[0].features = torch.zeros(3, 32)
    with pytest.raises(ValueError, match="image slots"):
        completion_logps(model, make_pack(prompts[:1], completions[:1]))
    completions[1][2] = completions[1][2][:0]
    with pytest.raises(ValueError, match="p1: a completion has no token"):
        make_pack(prompts, completions)


@pytest.mark.case("O20")
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_threads_give_the_same_bits_every_time(precision):
    """Large enough for torch to cut its operations into threads, and more threads than cores, so
    that they end in different orders."""
    model, processor = load_model(BASE_MODEL), Processor(BASE_MODEL)
    image = Image.effect_mandelbrot((112, 112), (-2, -1, 1, 1), 50).convert("RGB")
    prompts = [processor.prompt(id, [image], "How many flowers are there?") for id in "ab"]
    lengths = torch.randint(5, 20, (2, 8), generator=torch.Generator().manual_seed(0)).tolist()
    pack = make_pack(prompts, [[torch.arange(n) + 20 for n in of_group] for of_group in lengths])
    weights = torch.linspace(-1, 1, sum(map(sum, lengths)))
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    torch.set_float32_matmul_precision(precision)
    try:
        runs = []
        for _ in range(4):
            (completion_logps(model, pack)[0] * weights).sum().backward()
            runs.append(gradients(model))
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
    assert any(name.startswith("visual") for name in runs[0])
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


def test_a_tower_without_gradients_sees_a_bounded_part_of_the_images(tiny, monkeypatch):
    model, processor = tiny
    prompts, _ = some_groups(processor)
    with torch.no_grad():
        whole, seen = model.image_features(prompts), []
    forward = model.visual.forward
    monkeypatch.setattr(
        model.visual,
        "forward",
        lambda pixels, grids: seen.append(len(pixels)) or forward(pixels, grids),
    )
    monkeypatch.setattr(vlm, "TOWER_PATCHES", 100)
    with torch.no_grad():
        torch.testing.assert_close(model.image_features(prompts), whole)
    sizes = [len(prompt.pixels) for prompt in prompts if prompt.pixels is not None]
    assert seen == sizes and sum(sizes) > 100  # one prompt at least
    model.image_features(prompts)  # with gradients: a micro-batch, as a whole
    assert seen[-1] == sum(sizes)
