"""Guarantees of `kernels/decode.py`, for the torch and the Triton implementation alike.

The truth is the row-by-row reference in float64: every row sees its own group's prefix up to its
length and its own suffix up to the present length, and nothing else; how the prefix is cut into
parts does not matter.

Run: python -m pytest tests/kernels/test_decode.py (interpreted without a GPU, else compiled).
"""

import pytest
import torch

from kernels import decode, shared_prefix_attention, shared_prefix_attention_ref, triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(triton is None, reason="triton is not installed")
each_impl = pytest.mark.parametrize("impl", ["torch", pytest.param("triton", marks=needs_triton)])


def inputs(N=2, G=3, H=4, K=2, E=16, P=70, S=5, S_max=9, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).mul(2).to(dtype).to(DEVICE)

    B = N * G
    lengths = torch.randint(1, P + 1, (N,), generator=generator, dtype=torch.int32)
    lengths[0] = P
    return dict(
        q=normal(B, H, E),
        k=normal(N, K, P + S_max * G, E),
        v=normal(N, K, P + S_max * G, E),
        prefix_lengths=lengths.to(DEVICE),
        prefix_size=P,
        suffix_length=torch.tensor(S, dtype=torch.int32, device=DEVICE),
    )


def doubled(given):
    return {name: x.double() if name in "qkv" else x for name, x in given.items()}


@pytest.mark.case("O15")
@each_impl
@pytest.mark.parametrize(
    "shape",
    [
        dict(),
        dict(N=1, G=1, H=1, K=1, P=1, S=1, S_max=1),
        dict(N=3, G=8, H=6, K=2, E=32, P=130, S=70, S_max=96),  # a suffix of two blocks
        dict(N=1, G=40, H=4, K=2, P=200),  # 80 queries a key head: two tiles
        dict(N=2, G=2, H=12, K=2, E=64, P=64, S=64, S_max=64),  # whole blocks, nothing to mask
    ],
    ids=lambda shape: "-".join(f"{k}{v}" for k, v in shape.items()) or "default",
)
def test_every_row_sees_its_prefix_and_its_suffix_and_nothing_else(shape, impl):
    given = inputs(**shape)
    truth = shared_prefix_attention_ref(**doubled(given))
    out = shared_prefix_attention(**given, impl=impl)
    assert out.shape == given["q"].shape and out.dtype == torch.float32
    torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-5)


@each_impl
def test_what_lies_beyond_the_lengths_is_not_read(impl):
    given = inputs()
    expected = shared_prefix_attention(**given, impl=impl)
    given["prefix_lengths"][1] = 7
    changed = shared_prefix_attention(**given, impl=impl)
    assert torch.equal(changed[:3], expected[:3]) and not torch.equal(changed[3:], expected[3:])
    said = 70 + 5 * 3  # keys of the prefix and of five steps of three rows
    for name in ("k", "v"):
        given[name][1, :, 7:70] = 1e4
        given[name][:, :, said:] = float("nan")
    assert torch.equal(shared_prefix_attention(**given, impl=impl), changed)


@each_impl
def test_a_row_never_sees_what_the_others_of_its_group_said(impl):
    given = inputs()
    expected = shared_prefix_attention(**given, impl=impl)
    given["v"][0, :, 70 + 2 * 3 + 1] += 100.0  # what row 1 of group 0 said in step 2
    changed = (shared_prefix_attention(**given, impl=impl) != expected).flatten(1).any(1)
    assert changed.tolist() == [False, True, False, False, False, False]


@each_impl
def test_queries_may_be_a_slice_of_a_wider_product(impl):
    given = inputs()
    expected = shared_prefix_attention(**given, impl=impl)
    wide = torch.cat((given["q"], torch.full_like(given["q"], 9.0)), dim=1)
    given["q"] = wide[:, : given["q"].shape[1]]
    assert torch.equal(shared_prefix_attention(**given, impl=impl), expected)


@each_impl
def test_a_key_that_wins_by_far_gives_its_value_alone(impl):
    given = inputs()
    given["k"][0, 1, 3] = 50 * given["q"][2, 3]  # key head 1 serves the query heads 2 and 3
    out = shared_prefix_attention(**given, impl=impl)
    torch.testing.assert_close(out[2, 3], given["v"][0, 1, 3], rtol=1e-5, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("programs", [1, 10**6])
def test_cutting_the_prefix_into_parts_changes_nothing(monkeypatch, programs):
    given = inputs(P=300, N=2)
    given["prefix_lengths"][1] = 70  # most parts of the second prefix are empty
    monkeypatch.setattr(decode, "PROGRAMS", programs)
    block = decode.TILES[torch.float32]["BLOCK_KEYS"]
    length, parts = decode.prefix_parts(300, 4, block)
    assert parts == (1 if programs == 1 else -(-300 // block)) and length % block == 0
    truth = shared_prefix_attention_ref(**doubled(given))
    out = shared_prefix_attention(**given, impl="triton")
    torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("P", [1, 64, 65, 1000, 4096])
@pytest.mark.parametrize("programs", [1, 4, 32, 1000])
def test_the_parts_cover_the_prefix_and_none_is_empty(P, programs):
    length, parts = decode.prefix_parts(P, programs, 64)
    assert (parts - 1) * length < P <= parts * length


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter cannot multiply bfloat16")
def test_bf16_differs_from_the_truth_by_rounding_only():
    given = inputs(N=3, G=8, H=12, K=2, E=128, P=1000, S=70, S_max=96, dtype=torch.bfloat16)
    truth = shared_prefix_attention_ref(**doubled(given))
    for impl in ("torch", "triton"):
        out = shared_prefix_attention(**given, impl=impl)
        assert (out.double() - truth).abs().mean() < 4e-3 * truth.abs().mean()


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("v", torch.zeros(2, 2, 96, 16), "k and v must be"),
        ("prefix_lengths", torch.ones(3, dtype=torch.int32), "prefix_lengths must have shape"),
        ("suffix_length", torch.tensor([5]), "suffix_length shape"),
        ("suffix_length", torch.tensor(5), "must be int32"),
        ("q", torch.zeros(6, 3, 16), "must divide"),
        ("q", torch.zeros(6, 4, 16, dtype=torch.float64), "must share a dtype"),
    ],
)
def test_shapes_and_dtypes_that_do_not_fit_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        shared_prefix_attention(**{**inputs(), name: value.to(DEVICE)})


@needs_triton
def test_the_kernel_refuses_what_it_cannot_take():
    with pytest.raises(ValueError, match="head widths"):
        shared_prefix_attention(**inputs(E=20), impl="triton")
    given = inputs()
    given["k"] = given["k"].transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(ValueError, match="contiguous"):
        shared_prefix_attention(**given, impl="triton")
