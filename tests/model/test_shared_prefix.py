"""A packed group [prefix | c_1 | .. | c_G] equals G separate sequences [prefix | c_i].

The separate sequences run through the plain causal path, which tests/model/test_parity.py ties to
transformers. Log-probabilities, entropies and every parameter gradient must agree; a completion
must see its own image and nothing of its neighbours.
"""

from dataclasses import replace

import pytest
import torch

from config import BASE_MODEL
from model import attention, language
from model.attention import PackLayout
from model.processor import Processor
from model.vlm import completion_logps, make_pack
from model.weights import load_model
from tasks import load_task
from train_grpo import GRPOConfig


@pytest.fixture(scope="module")
def tiny(tiny_dir):
    return load_model(tiny_dir), Processor(tiny_dir)


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
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.case("O10")
@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_logps_and_gradients_equal_the_repeated_computation(tiny, temperature, precision):
    model, processor = tiny
    prompts, completions = some_groups(processor)
    weights = torch.randn(sum(len(c) for group in completions for c in group))
    torch.set_float32_matmul_precision(precision)  # the plain form of attention under "medium"
    try:
        repeated = torch.cat(
            [
                separate_logps(model, p, c, temperature, processor.suppressed_tokens)
                for p, group in zip(prompts, completions, strict=True)
                for c in group
            ]
        )
        (repeated * weights).sum().backward()
        expected = gradients(model)
        packed, _ = completion_logps(
            model, make_pack(prompts, completions), temperature, processor.suppressed_tokens
        )
        (packed * weights).sum().backward()
        found = gradients(model)
    finally:
        torch.set_float32_matmul_precision("highest")
    # bf16 products of "medium" depend on how the rows are grouped; float32 sums hardly do
    tolerance = 1e-5 if precision == "highest" else 0.1
    assert (packed - repeated).abs().max() < tolerance
    assert found.keys() == expected.keys() and len(found) > 40
    for name, gradient in found.items():
        scale = expected[name].abs().max()
        assert (gradient - expected[name]).abs().max() <= tolerance * scale, name


def bottom_right_attention(q, k, v, query_ends, key_ends, max_q, max_k):
    """What a flash kernel computes, sequence by sequence: the last query sees the last key."""
    out, R = [], q.shape[1] // k.shape[1]
    for n in range(len(query_ends) - 1):
        a, b = query_ends[n : n + 2], key_ends[n : n + 2]
        own_q, own_k, own_v = q[a[0] : a[1]], k[b[0] : b[1]], v[b[0] : b[1]]
        assert 0 < len(own_q) <= max_q and len(own_q) <= len(own_k) <= max_k
        own_k, own_v = (x.repeat_interleave(R, dim=1) for x in (own_k, own_v))
        scores = torch.einsum("qhe,khe->hqk", own_q, own_k) / q.shape[-1] ** 0.5
        hidden = torch.ones(scores.shape[1:]).triu(len(own_k) - len(own_q) + 1).bool()
        out.append(
            torch.einsum("hqk,khe->qhe", scores.masked_fill(hidden, -torch.inf).softmax(-1), own_v)
        )
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
    for name, gradient in gradients(model).items():
        difference = (gradient - expected[name]).abs().max()
        assert difference < 1e-5 * expected[name].abs().max().clamp(min=1e-3), name


def test_the_flash_kernel_is_asked_for_causal_attention(monkeypatch):
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


@pytest.mark.case("O13")
def test_recomputing_layers_keeps_less_and_changes_no_gradient(tiny):
    model, processor = tiny
    pack = make_pack(*some_groups(processor))

    def update(recompute):
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        for part in (model.model, model.visual):
            part.gradient_checkpointing = recompute
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logp, _ = completion_logps(model, pack)
        logp.sum().backward()
        return sum(kept.values()), gradients(model)

    everything, expected = update(False)
    less, found = update(True)
    update(False)
    assert less < everything / 2
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.case("O8")
def test_entropy_is_that_of_the_sampling_distribution(tiny):
    model, processor = tiny
    prompts, completions = some_groups(processor)
    _, entropy = completion_logps(
        model, make_pack(prompts, completions), 1.3, processor.suppressed_tokens
    )
    with torch.no_grad():
        P = len(prompts[0].ids)
        layout = PackLayout([P], [[]])
        hidden = model(prompts[0].ids, prompts[0].positions, layout, prompts[:1])
        logits = model.logits(hidden[-1]) / 1.3
        p = logits.masked_fill(processor.suppressed_tokens, float("-inf")).softmax(-1)
    expected = -(p * p.clamp(min=1e-30).log()).sum()
    assert torch.allclose(entropy[0], expected, atol=1e-5)


@pytest.mark.case("O11")
def test_swapping_one_image_changes_only_its_own_group(tiny):
    model, processor = tiny
    prompts, completions = some_groups(processor)
    with torch.no_grad():
        before, _ = completion_logps(model, make_pack(prompts, completions))
        other = replace(prompts[2], pixels=prompts[2].pixels.flip(0))
        after, _ = completion_logps(model, make_pack([*prompts[:2], other], completions))
    untouched = sum(len(c) for group in completions[:2] for c in group)
    assert torch.equal(before[:untouched], after[:untouched])
    assert ((before - after)[untouched:].abs() > 1e-4).all()


@pytest.mark.case("O11")
def test_a_completion_does_not_see_its_neighbours(tiny):
    model, processor = tiny
    prompts, completions = some_groups(processor)
    with torch.no_grad():
        before, _ = completion_logps(model, make_pack(prompts, completions))
        completions[0][1] = (completions[0][1] + 1) % 200 + 20
        after, _ = completion_logps(model, make_pack(prompts, completions))
    lengths = [len(c) for group in completions for c in group]
    same = torch.ones(sum(lengths), dtype=torch.bool)
    same[lengths[0] : lengths[0] + lengths[1]] = False
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[~same], after[~same])


def test_kept_features_give_the_same_logps_and_leave_the_tower_without_gradient(tiny):
    model, processor = tiny
    prompts, completions = some_groups(processor)
    expected, _ = completion_logps(model, make_pack(prompts, completions))
    for prompt in prompts:
        with torch.no_grad():
            prompt.features = model.image_features([prompt])
    kept, _ = completion_logps(model, make_pack(prompts, completions))
    assert torch.allclose(kept, expected, atol=1e-5)
    kept.sum().backward()
    assert not any(name.startswith("visual.") for name in gradients(model))


@pytest.mark.case("O1")
def test_a_completion_without_tokens_is_refused(tiny):
    _, processor = tiny
    prompts, completions = some_groups(processor)
    completions[1][2] = completions[1][2][:0]
    with pytest.raises(ValueError, match="p1: a completion has no token"):
        make_pack(prompts, completions)


def test_mismatched_slots_and_features_are_refused(tiny):
    model, processor = tiny
    prompts, completions = some_groups(processor)
    prompts[0].features = torch.zeros(3, 32)
    with pytest.raises(ValueError, match="image slots"):
        completion_logps(model, make_pack(prompts[:1], completions[:1]))


@pytest.mark.case("O20")
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_threads_do_not_change_a_bit_from_one_time_to_the_next(precision):
    """Large enough for torch to cut its operations into threads; more of them than there are
    cores, so that they come in different orders."""
    model, processor = load_model(BASE_MODEL), Processor(BASE_MODEL)
    task = load_task(GRPOConfig(task="count", train_size=2), processor)
    prompts = [processor.prompt(e.id, e.images, e.question) for e in task.train]
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 20, (2, 8), generator=generator).tolist()
    completions = [[torch.arange(n) + 20 for n in of_group] for of_group in lengths]
    weights = torch.randn(sum(map(sum, lengths)), generator=generator)
    pack = make_pack(prompts, completions)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    torch.set_float32_matmul_precision(precision)
    try:
        found = []
        for _ in range(8):
            (completion_logps(model, pack)[0] * weights).sum().backward()
            found.append(gradients(model))
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision("highest")
    assert any(name.startswith("visual") for name in found[0])
    for again in found[1:]:
        assert all(torch.equal(again[name], found[0][name]) for name in again)
