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


def make_inputs(N=2, G=3, H=4, K=2, E=16, P=70, S=5, S_max=9, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

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


def float64_reference(inputs):
    doubled = {name: x.double() if name in "qkv" else x for name, x in inputs.items()}
    return shared_prefix_attention_ref(**doubled)


@pytest.mark.case("O15")
@each_impl
@pytest.mark.parametrize(
    "shape",
    [
        dict(),
        dict(N=1, G=1, H=1, K=1, P=1, S=1, S_max=1),
        dict(N=2, G=5, H=6, K=2, E=32, P=130, S=35, S_max=48),  # a suffix of two blocks
        dict(N=1, G=12, H=4, K=2, P=70),  # 24 queries a key head: two tiles
        dict(N=2, G=2, H=12, K=2, E=64, P=64, S=32, S_max=32),  # whole blocks, nothing to mask
        *(dict(E=E) for E in (8, 20, 80, 128)),  # widths that are, and are not, powers of two
        *(dict(N=1, G=3, H=R * K, K=K, P=40) for R, K in ((2, 8), (4, 8), (7, 4), (8, 2))),
    ],
    ids=lambda shape: "-".join(f"{k}{v}" for k, v in shape.items()) or "default",
)
def test_every_row_sees_its_prefix_and_its_suffix_and_nothing_else(shape, impl):
    inputs = make_inputs(**shape)
    truth = float64_reference(inputs)
    out = shared_prefix_attention(**inputs, impl=impl)
    assert out.shape == inputs["q"].shape and out.dtype == torch.float32
    torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-5)


@each_impl
def test_keys_beyond_the_lengths_and_of_other_rows_change_nothing(impl):
    inputs = make_inputs()
    expected = shared_prefix_attention(**inputs, impl=impl)
    inputs["prefix_lengths"][1] = 7
    changed = shared_prefix_attention(**inputs, impl=impl)
    assert torch.equal(changed[:3], expected[:3]) and not torch.equal(changed[3:], expected[3:])
    used = 70 + 5 * 3  # keys of the prefix and of five steps of three rows
    for name in ("k", "v"):
        inputs[name][1, :, 7:70] = 1e4
        inputs[name][:, :, used:] = float("nan")
    assert torch.equal(shared_prefix_attention(**inputs, impl=impl), changed)
    inputs["v"][0, :, 70 + 2 * 3 + 1] += 100.0  # the token of row 1 of group 0 in step 2
    differs = (shared_prefix_attention(**inputs, impl=impl) != changed).flatten(1).any(1)
    assert differs.tolist() == [False, True, False, False, False, False]


@each_impl
def test_strided_queries_and_a_key_that_outweighs_all_others(impl):
    inputs = make_inputs()
    inputs["k"][0, 1, 3] = 50 * inputs["q"][2, 3]  # key head 1 serves the query heads 2 and 3
    expected = shared_prefix_attention(**inputs, impl=impl)
    torch.testing.assert_close(expected[2, 3], inputs["v"][0, 1, 3], rtol=1e-5, atol=1e-5)
    wide = torch.cat((inputs["q"], torch.full_like(inputs["q"], 9.0)), dim=1)
    inputs["q"] = wide[:, : inputs["q"].shape[1]]
    assert torch.equal(shared_prefix_attention(**inputs, impl=impl), expected)


@needs_triton
@pytest.mark.parametrize("programs", [1, 20, 10**6])
def test_cutting_the_prefix_into_parts_changes_nothing(monkeypatch, programs):
    inputs = make_inputs(P=300, N=2)
    inputs["prefix_lengths"][1] = 70  # most parts of the second prefix are empty
    monkeypatch.setattr(decode, "PROGRAMS", programs)
    monkeypatch.setattr(decode, "PARTS_AT_ONCE", 4)  # of ten, and the suffix
    for P in (1, 64, 65, 300, 4096):
        length, parts = decode.prefix_parts(P, 4, 32)
        most = max(1, min(-(-P // 32), programs // 4))  # one block each, four programs for each
        assert parts <= most and (parts == most or programs == 20) and length % 32 == 0
        assert (parts - 1) * length < P <= parts * length
    out = shared_prefix_attention(**inputs, impl="triton")
    torch.testing.assert_close(out.double(), float64_reference(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter cannot multiply bfloat16")
def test_bf16_differs_from_the_truth_by_rounding_only():
    inputs = make_inputs(N=3, G=8, H=12, K=2, E=128, P=1000, S=70, S_max=96, dtype=torch.bfloat16)
    truth = float64_reference(inputs)
    for impl in ("torch", "triton"):
        out = shared_prefix_attention(**inputs, impl=impl)
        assert (out.double() - truth).abs().mean() < 4e-3 * truth.abs().mean()


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("v", torch.zeros(2, 2, 96, 16), "k and v must be"),
        ("prefix_lengths", torch.ones(3, dtype=torch.int32), r"prefix_lengths must be \(2,\)"),
        ("suffix_length", torch.tensor([5], dtype=torch.int32), r"suffix_length \(\)"),
        ("suffix_length", torch.tensor(5), "both int32"),
        ("q", torch.zeros(6, 3, 16), "must divide"),
        ("q", torch.zeros(6, 4, 16, dtype=torch.float64), "must share a dtype"),
    ],
)
def test_shapes_and_dtypes_that_do_not_fit_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        shared_prefix_attention(**{**make_inputs(), name: value.to(DEVICE)})


@needs_triton
def test_the_kernel_refuses_wider_heads_and_strided_caches():
    with pytest.raises(ValueError, match="heads of at most 128, got 132"):
        shared_prefix_attention(**make_inputs(E=132), impl="triton")
    inputs = make_inputs()
    inputs["k"] = inputs["k"].transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(ValueError, match="contiguous"):
        shared_prefix_attention(**inputs, impl="triton")
