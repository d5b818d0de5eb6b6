"""What a decoder layer keeps for backward, counted tensor by tensor.

The layer has Qwen2-VL-2B's shape, lies on the device "meta" (nothing is computed) and goes through
the attention of a GPU, of which a stand-in keeps what a flash kernel keeps. The norm is counted as
torch computes it without a GPU: four fp32 tensors a layer, where the kernel for a GPU keeps two in
bf16 (both inputs) and two numbers.
"""

import torch
from torch.autograd.graph import saved_tensors_hooks

from model import attention, language
from model.adapter import Adapter, Linear
from model.attention import PackLayout
from model.config import FAMILIES, TextConfig

LAYERS, D, H, K, E, WIDTH = 28, 1536, 12, 2, 128, 8960
T, RANK = 64, 16
CFG = TextConfig(FAMILIES["qwen2_vl"], 151936, D, LAYERS, H, K, E, WIDTH, 1e-6, 1e6, (16, 24, 24))
BF16, FP32 = 2, 4


class FlashStandIn(torch.autograd.Function):
    """Keeps queries, keys, values, the output and a log-sum of every query and head."""

    @staticmethod
    def forward(ctx, q, k, v):
        out, log_sums = torch.empty_like(q), q.new_empty(q.shape[1], len(q), dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out


def bytes_kept(monkeypatch, trained: str) -> float:
    """Bytes per token that one layer keeps, its parameters aside."""
    monkeypatch.setattr(language, "packed_attention", attention.varlen_attention)
    monkeypatch.setattr(attention, "flash_varlen", lambda q, k, v, *_: FlashStandIn.apply(q, k, v))
    with torch.device("meta"):
        layer = language.DecoderLayer(CFG).to(torch.bfloat16)
        if trained == "LoRA":
            layer.requires_grad_(False)
            for module in layer.modules():
                if isinstance(module, Linear):
                    out, width = module.weight.shape
                    pair = torch.empty(RANK, width), torch.empty(out, RANK)
                    module.lora = Adapter({"all": out}, {"all": pair}, 2.0).to(torch.bfloat16)
        x = torch.empty(T, D, dtype=torch.bfloat16, requires_grad=True)
        rotary = [torch.empty(T, 1, E, dtype=torch.bfloat16) for _ in range(2)]
    layout = PackLayout([T], [[]], "meta")
    shared = [*layer.parameters(), *rotary, *layout.sequences]
    shared = {x.untyped_storage()._cdata for x in shared if isinstance(x, torch.Tensor)}
    kept = {}  # storages by their address

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in shared:
            kept[storage._cdata] = storage  # alive, so that no number is used twice
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        layer(x, rotary, layout, None)
    return sum(storage.nbytes() for storage in kept.values()) / T


def expected_bytes() -> dict[str, int]:
    """Per token and layer."""
    return {
        "norms: input in fp32, normalised in fp32, 1 / root mean square": 2 * (2 * D + 1) * FP32,
        "inputs of qkv_proj and of gate_proj and up_proj": 2 * D * BF16,
        "attention: queries, keys, values, output": (2 * H + 2 * K) * E * BF16,
        "attention: log-sums": H * FP32,
        "MLP: gate and up": 2 * WIDTH * BF16,
    }


def test_a_layer_keeps_gate_and_up_and_no_third_tensor_of_the_mlps_width(monkeypatch):
    kept = bytes_kept(monkeypatch, "all")
    assert kept == sum(expected_bytes().values())
    assert LAYERS * kept / 2**20 < 2.0  # MiB per token


def test_with_adapters_a_layer_keeps_no_more(monkeypatch):
    # The frozen norms keep less; x A^T of five layers and the stacked A come on top.
    assert bytes_kept(monkeypatch, "LoRA") < sum(expected_bytes().values())
