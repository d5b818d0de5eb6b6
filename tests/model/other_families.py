"""Tiny random checkpoint directories of families other than Qwen-VL, as the hub would have them.

transformers' save_pretrained writes config and weights; tokenizer, chat template and processor
files are those of the published repositories. In the configurations, control tokens are ids.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import image_utils
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX

TEXT = """Which species is this flower? Solara minor, Solara major or Lunaria alba? Question: user
<think>red petals</think><answer>Solara minor</answer> Look at the picture, where is it?"""
TOKENS, ROWS, SQUARE = 368, 384, dict(height=28, width=28)  # some rows have no token, as often


class Family(NamedTuple):
    model: str  # its class is transformers.{model}ForConditionalGeneration
    control: str  # control tokens, then those of `names`; their ids are 0, 1, 2, ...
    config: dict  # config.json; pad, bos and eos of its text_config are the tokenizer's too
    image: dict  # preprocessor_config.json
    processor: dict  # processor_config.json
    template: str | None  # chat_template.jinja
    adds_bos: bool = False  # the tokenizer starts a text with its bos token
    names: dict = {}  # tokens that the processor asks its tokenizer for


def text(model_type: str, pad: str, bos: str | None, eos: str, **fields) -> dict:
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=ROWS)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)
    tokens = dict(pad_token_id=pad, bos_token_id=bos, eos_token_id=eos)
    return dict(model_type=model_type) | sizes | tokens | fields


def vision(model_type: str, **fields) -> dict:
    sizes = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return dict(model_type=model_type, image_size=28, patch_size=7) | sizes | fields


def image(kind: str, statistics: str, **fields) -> dict:
    mean, std = (list(getattr(image_utils, f"{statistics}_{name}")) for name in ("MEAN", "STD"))
    steps = dict(do_convert_rgb=True, do_resize=True, do_rescale=True, do_normalize=True)
    scale = dict(rescale_factor=1 / 255, image_mean=mean, image_std=std, resample=3)
    return dict(image_processor_type=kind) | steps | scale | fields


def template(before: str, picture: str, after: str, answer: str = "", first: str = "") -> str:
    """A chat template; `before` and `after` enclose every message."""
    part = "{% if part['type'] == 'image' %}" + picture + "{% else %}{{ part['text'] }}{% endif %}"
    parts = "{% for part in message['content'] %}" + part + "{% endfor %}"
    content = "{% if message['content'] is string %}{{ message['content'] }}{% else %}" + parts
    turns = "{% for message in messages %}" + before + content + "{% endif %}" + after
    return first + turns + "{% endfor %}{% if add_generation_prompt %}" + answer + "{% endif %}"


def llava(kind: str, decoder: dict, template: str, patch: int, **fields) -> Family:
    select = dict(vision_feature_select_strategy="default")
    config = select | dict(image_token_index="<image>", vision_feature_layer=-2) | fields
    config |= dict(text_config=decoder, image_seq_length=(28 // patch) ** 2)
    config["vision_config"] = vision("clip_vision_model", num_hidden_layers=3, patch_size=patch)
    pixels = dict(size=dict(shortest_edge=28), crop_size=SQUARE, do_center_crop=True) | fields
    pixels = image(f"{'CLIP' if kind == 'Llava' else kind}ImageProcessor", "OPENAI_CLIP", **pixels)
    processor = dict(patch_size=patch, num_additional_image_tokens=1, image_token="<image>")
    return Family(kind, WORDS, config, pixels, processor | select, template, True)


def tiled(kind: str, scale: int, side: int, **fields) -> Family:
    """Idefics3 and its successor: a grid of tiles and then the whole picture in one tile."""
    cells = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    control = "<|endoftext|> <|im_start|> <|im_end|> " + " ".join(cells)
    config = dict(image_token_id="<image>", scale_factor=scale, pad_token_id="<|im_end|>")
    config["text_config"] = text("llama", "<|im_end|>", "<|im_start|>", "<end_of_utterance>")
    config["vision_config"] = vision(f"{kind.lower()}_vision", image_size=side)
    pixels = dict(size=dict(longest_edge=2 * side), max_image_size=dict(longest_edge=side))
    pixels |= dict(resample=1, do_image_splitting=True, do_pad=True) | fields
    before = "{{ message['role'] | capitalize }}{% if message['content'] is not string and "
    before += "message['content'][0]['type'] == 'image' %}:{% else %}{{ ': ' }}{% endif %}"
    turns = template(before, "<image>", "<end_of_utterance>\n", "Assistant:", "<|im_start|>")
    names = dict(image_token="<image>", fake_image_token="<fake_token_around_image>")
    names |= dict(end_of_utterance_token="<end_of_utterance>", global_image_token="<global-img>")
    pixels = image(f"{kind}ImageProcessor", "IMAGENET_STANDARD", **pixels)
    return Family(kind, control, config, pixels, dict(image_seq_len=4), turns, names=names)


def queries(kind: str, tower: str, decoder: dict) -> Family:
    """BLIP-2 and its successor: a small transformer reads the picture with a few queries."""
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    sizes |= dict(encoder_hidden_size=48, vocab_size=256, max_position_embeddings=128)
    config = dict(num_query_tokens=4, image_token_index="<image>", text_config=decoder)
    config |= dict(vision_config=vision(f"{tower}_vision_model"), qformer_config=sizes)
    pixels = image("BlipImageProcessor", "OPENAI_CLIP", size=SQUARE)
    return Family(kind, WORDS, config, pixels, dict(num_query_tokens=4), None, True)


def internvl() -> Family:
    control = "<|endoftext|> <|im_start|> <|im_end|>"
    config = dict(image_token_id="<IMG_CONTEXT>", image_seq_length=4, downsample_ratio=0.5)
    config["text_config"] = text("qwen2", "<|endoftext|>", None, "<|im_end|>")
    config["vision_config"] = vision("internvl_vision", attention_bias=True)
    pixels = dict(size=SQUARE, crop_to_patches=False, min_patches=1, max_patches=4)
    pixels = image("GotOcr2ImageProcessorFast", "IMAGENET_DEFAULT", **pixels)
    names = dict(start_image_token="<img>", end_image_token="</img>", video_token="<video>")
    names |= dict(context_image_token="<IMG_CONTEXT>")
    processor, turns = dict(image_seq_length=4), CHATML.replace("<image>", "<IMG_CONTEXT>\n")
    return Family("InternVL", control, config, pixels, processor, turns, names=names)


def gemma3() -> Family:
    control = "<pad> <eos> <bos> <unk> <start_of_turn> <end_of_turn>"
    names = dict(boi_token="<start_of_image>", eoi_token="<end_of_image>")
    names |= dict(image_token="<image_soft_token>")
    config = {f"{n}_index": token for n, token in names.items()} | dict(mm_tokens_per_image=4)
    layers = dict(num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2)
    layers |= dict(sliding_window=8, head_dim=16, query_pre_attn_scalar=16)
    layers |= dict(rope_scaling=dict(rope_type="linear", factor=8.0))
    config["text_config"] = text("gemma3_text", "<pad>", "<bos>", "<eos>", **layers)
    config["vision_config"] = vision("siglip_vision_model", vision_use_head=False)
    pixels = dict(resample=2, size=SQUARE, do_pan_and_scan=None, image_seq_length=4)
    pixels = image("Gemma3ImageProcessor", "IMAGENET_STANDARD", **pixels)
    role = "{{ 'model' if message['role'] == 'assistant' else message['role'] }}"
    turns = f"<start_of_turn>{role}\n", "<start_of_image>", "<end_of_turn>\n"
    turns = template(*turns, "<start_of_turn>model\n", "{{ bos_token }}")
    return Family("Gemma3", control, config, pixels, dict(image_seq_length=4), turns, True, names)


def qwen3_5() -> Family:
    control = "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> "
    control += "<|vision_pad|> <|image_pad|> <|video_pad|>"
    config = dict(vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>")
    config |= dict(image_token_id="<|image_pad|>", video_token_id="<|video_pad|>")
    rope = dict(rope_type="default", rope_theta=1e7, partial_rotary_factor=0.25)
    rope |= dict(mrope_interleaved=True, mrope_section=[2, 2, 2])
    sizes = dict(num_hidden_layers=4, head_dim=48, linear_num_key_heads=2, rope_parameters=rope)
    sizes |= dict(linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8)
    config["text_config"] = text("qwen3_5_text", "<|endoftext|>", None, "<|im_end|>", **sizes)
    tower = dict(depth=2, hidden_size=32, num_heads=2, intermediate_size=48, patch_size=8)
    config["vision_config"] = tower | dict(out_hidden_size=32, num_position_embeddings=49)
    pixels = dict(patch_size=8, temporal_patch_size=2, merge_size=2)
    pixels |= dict(size=dict(shortest_edge=32 * 32, longest_edge=48 * 64))
    pixels = image("Qwen2VLImageProcessorFast", "IMAGENET_STANDARD", **pixels)
    turns = CHATML.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    return Family("Qwen3_5", control, config, pixels, {}, turns)


CHATML = "<|im_start|>{{ message['role'] }}\n", "<image>", "<|im_end|>\n"
CHATML = template(*CHATML, "<|im_start|>assistant\n")
VICUNA = template("{{ message['role'].upper() }}: ", "<image>\n", " ", "ASSISTANT:")
CASES = "{{ '%s' if message['role'] == 'user' else '%s' }}"
MISTRAL = template(CASES % ("[INST] ", " "), "<image>\n", CASES % (" [/INST]", "</s> "))
WORDS = "<unk> <s> </s> <pad> <image>"
LLAMA, OPT = text("llama", "<pad>", "<s>", "</s>"), text("opt", "<pad>", "</s>", "</s>")
OPT |= dict(ffn_dim=OPT.pop("intermediate_size"), word_embed_proj_dim=32)
del OPT["num_key_value_heads"]
SEVEN_B = text("mistral", "<pad>", "<s>", "</s>", sliding_window=None)
GRIDS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
OTHER_FAMILIES = {
    "llava": llava("Llava", LLAMA, VICUNA, 7),
    "llava_next": llava("LlavaNext", SEVEN_B, MISTRAL, 14, image_grid_pinpoints=GRIDS),
    "idefics3": tiled("Idefics3", 2, 28),
    "smolvlm": tiled("SmolVLM", 4, 56, video_sampling=dict(fps=1, max_frames=64)),
    "internvl": internvl(),
    "gemma3": gemma3(),
    "blip-2": queries("Blip2", "blip_2", OPT),
    "instructblip": queries("InstructBlip", "instructblip", LLAMA),
    "qwen3_5": qwen3_5(),
}


def write_tokenizer(path: Path, tokens: list[str], bos: str | bool) -> None:
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    tokenizer.normalizer, tokenizer.decoder = normalizers.NFC(), decoders.ByteLevel()
    options = dict(special_tokens=tokens, initial_alphabet=to_bytes.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=TOKENS, show_progress=False, **options)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    if bos:
        tokenizer.post_processor = TemplateProcessing(f"{bos} $A", None, [(bos, tokens.index(bos))])
    tokenizer.save(str(path))


def random_model(kind: Family, tokens: list[str]):
    """A model of transformers' class whose answers visibly depend on the picture."""
    config = json.dumps(kind.config)
    for n, token in enumerate(tokens):
        config = config.replace(json.dumps(token), str(n))
    config = getattr(transformers, f"{kind.model}Config")(**json.loads(config))
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind.model}ForConditionalGeneration")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.2 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
        model.get_input_embeddings().weight.mul_(0.5)  # a tied head does not repeat the last token
    stops = [n for n, token in enumerate(tokens) if token in ("<end_of_turn>", "<|endoftext|>")]
    model.generation_config.eos_token_id = [config.text_config.eos_token_id, *stops]
    return model


def write_other_directory(family: str, directory: Path) -> Path:
    """Write a complete checkpoint directory of one of `OTHER_FAMILIES`."""
    kind = OTHER_FAMILIES[family]
    tokens = [*kind.control.split(), *kind.names.values()]
    random_model(kind, tokens).save_pretrained(directory)
    ids = kind.config["text_config"]
    ends = {f"{n}_token": ids.get(f"{n}_token_id") for n in ("pad", "bos", "eos")}
    write_tokenizer(directory / "tokenizer.json", tokens, kind.adds_bos and ends["bos_token"])
    owner = dict(processor_class=f"{'Qwen3VL' if family == 'qwen3_5' else kind.model}Processor")
    tokenizer = dict(tokenizer_class="PreTrainedTokenizerFast", extra_special_tokens=kind.names)
    files = {"tokenizer_config": tokenizer | ends | owner}
    files["preprocessor_config"] = kind.image | owner
    if kind.processor:
        files["processor_config"] = kind.processor | owner
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    if kind.template:
        (directory / "chat_template.jinja").write_text(kind.template, "utf-8")
    if family == "instructblip":  # its query transformer reads the question too
        words = "[PAD] [UNK] [CLS] [SEP] [MASK]".split() + re.findall(r"\w+|\S", TEXT.lower())
        words = {word: n for n, word in enumerate(dict.fromkeys(words))}
        transformers.BertTokenizer(words).save_pretrained(directory / "qformer_tokenizer")
    return directory


READ = transformers.AutoProcessor.from_pretrained


def read_without_torchvision() -> None:
    """Let AutoProcessor read these directories although torchvision is missing.

    Three processors want a video processor, which wants torchvision. They are built from their
    other parts; SmolVLM's own class only adds videos to Idefics3's.
    """

    def from_pretrained(directory, **options):
        kind = json.loads((Path(directory) / "config.json").read_text("utf-8"))["model_type"]
        if kind not in ("smolvlm", "internvl", "qwen3_5"):
            return READ(directory, **options)
        path = Path(directory) / "processor_config.json"
        fields = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        fields.pop("processor_class", None)
        name = {"smolvlm": "Idefics3", "internvl": "InternVL", "qwen3_5": "Qwen3VL"}[kind]
        base, parts = getattr(transformers, f"{name}Processor"), {}
        if kind != "smolvlm":
            check = dict(check_argument_for_proper_class=lambda self, name, part: type(part))
            base, parts = type(base.__name__, (base,), check), dict(video_processor=None)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        pictures = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")
        fields |= parts | dict(image_processor=pictures, tokenizer=tokenizer)
        return base(**fields, chat_template=tokenizer.chat_template)

    transformers.AutoProcessor.from_pretrained = from_pretrained
