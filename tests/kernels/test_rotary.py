"""Guarantees of `kernels/rotary.py`: a decoding step's queries, and what it leaves in the cache.

The truth is the rotation of complex numbers in float64, written per head and row.

Run: python -m pytest tests/kernels/test_rotary.py (interpreted without a GPU, else compiled).
"""

import pytest
import torch

from kernels import rotate_and_store, triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(triton is None, reason="triton is not installed")
each_impl = pytest.mark.parametrize("impl", ["torch", pytest.param("triton", marks=needs_triton)])
EPS = 1e-6
ROUNDING = 2**-8 if DEVICE == "cuda" else 2**-7  # the interpreter cuts bf16 off


def make_inputs(N=2, G=3, H=4, K=2, E=16, L=20, place=5, scale=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).mul(2).to(dtype).to(DEVICE)

    angle = torch.rand(N * G, 1, E // 2, generator=generator) * 6
    cos, sin = angle.cos(), angle.sin()
    return dict(
        qkv=normal(N * G, H + 2 * K, E),
        cos=torch.cat((cos, cos), -1).to(dtype).to(DEVICE),
        sin=torch.cat((-sin, sin), -1).to(dtype).to(DEVICE),
        scale=normal(H + K, E) if scale else None,
        eps=EPS,
        keys=normal(N, K, L, E),
        values=normal(N, K, L, E),
        newest=torch.arange(place, place + G, device=DEVICE),
    )


def truth(qkv, cos, sin, scale, eps, keys, values, newest):
    """Queries (B, H, E) and both caches, row by row and head by head, in float64."""
    (B, heads, E), (N, K, _, _) = qkv.shape, keys.shape
    G, H, half = B // N, heads - 2 * K, E // 2
    queries, keys, values = qkv.new_zeros(B, H, E).double(), keys.double(), values.double()
    for b in range(B):
        turn = torch.complex(cos[b, 0, :half].double(), sin[b, 0, half:].double())
        for head in range(heads):
            x = qkv[b, head].double()
            if head < H + K:
                if scale is not None:
                    x = x / (x.square().mean() + eps).sqrt() * scale[head].double()
                turned = torch.complex(x[:half], x[half:]) * turn
                x = torch.cat((turned.real, turned.imag))
            if head < H:
                queries[b, head] = x
            else:
                cache = keys if head < H + K else values
                cache[b // G, (head - H) % K, newest[b % G]] = x
    return queries, keys, values


@each_impl
@pytest.mark.parametrize(
    "shape",
    [
        dict(),
        dict(scale=False),
        dict(N=1, G=1, H=1, K=1, L=1, place=0),
        dict(N=3, G=2, H=12, K=2, E=32, scale=False),
        dict(N=1, G=5, H=7, K=1, E=12),  # heads that do not fill a tile, a width of no power of two
        dict(N=2, G=2, H=4, K=4, E=128),
    ],
    ids=lambda shape: "-".join(f"{k}{v}" for k, v in shape.items()) or "default",
)
def test_queries_are_rotated_and_the_cache_changes_at_the_newest_places_alone(shape, impl):
    inputs = make_inputs(**shape)
    expected = truth(**inputs)
    q = rotate_and_store(**inputs, impl=impl)
    for found, wanted in zip((q, inputs["keys"], inputs["values"]), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("scale", [True, False])
def test_bf16_is_rounded_once_by_the_kernel(scale):
    inputs = make_inputs(N=2, G=4, H=4, K=2, E=64, scale=scale, dtype=torch.bfloat16)
    expected = truth(**inputs)
    q = rotate_and_store(**inputs, impl="triton")
    for found, wanted in zip((q, inputs["keys"], inputs["values"]), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=ROUNDING, atol=1e-5)


def test_a_slice_and_a_tensor_name_the_same_places():
    first, second = make_inputs(), make_inputs()
    second["newest"] = slice(5, 8)
    q = rotate_and_store(**first, impl="torch")
    assert torch.equal(q, rotate_and_store(**second, impl="torch"))
    assert torch.equal(first["keys"], second["keys"])


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("qkv", torch.zeros(5, 8, 16), "N | B"),
        ("qkv", torch.zeros(6, 4, 16), "H \\+ 2K"),
        ("values", torch.zeros(2, 2, 21, 16), "twice"),
        ("cos", torch.zeros(6, 1, 8), "cos and sin must be"),
        ("scale", torch.zeros(4, 16), "scale must be \\(6, 16\\)"),
        ("keys", torch.zeros(2, 2, 20, 16, dtype=torch.float64), "share a dtype"),
    ],
)
def test_shapes_and_dtypes_that_do_not_fit_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        rotate_and_store(**{**make_inputs(), name: value.to(DEVICE)})


@needs_triton
def test_the_kernel_refuses_slices_and_strided_caches():
    with pytest.raises(ValueError, match="places as a tensor"):
        rotate_and_store(**{**make_inputs(), "newest": slice(5, 8)}, impl="triton")
    inputs = make_inputs()
    inputs["keys"] = inputs["keys"].transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(ValueError, match="contiguous"):
        rotate_and_store(**inputs, impl="triton")
