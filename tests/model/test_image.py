"""Guarantees of model/image.py, each test one of them. Run: pytest tests/model/test_image.py

- `patchify` equals transformers' Qwen2VLImageProcessorPil bit for bit, over sizes and patch sizes.
- Every kind of picture has one documented outcome: read correctly, or an InputError of one line
  that names the file. Nothing hangs and nothing is decoded before its size is known.
Expected pixels are written down by hand or computed without Pillow's conversions.
"""

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from model.image import FORMATS, ImageConfig, load_image, num_image_tokens, patchify, smart_resize
from runtime.errors import InputError

QWEN2_VL = {
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_pixels": 56 * 56,
    "max_pixels": 14 * 14 * 4 * 1280,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SMALL = QWEN2_VL | {"patch_size": 8, "min_pixels": 32 * 32, "max_pixels": 128 * 128}
HALVES = QWEN2_VL | {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (10, 20, 30)]


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def corners():
    """A 48x32 picture in six flat fields, 3 columns by 2 rows, so that each rotation shows."""
    fields = np.array(COLOURS, dtype=np.uint8).reshape(2, 3, 3)
    return Image.fromarray(fields.repeat(16, axis=0).repeat(16, axis=1))


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bytes(width, height, bit_depth, colour_type, rows, extra=b""):
    """A PNG built by hand, so that the expectation does not pass through Pillow's writer."""
    head = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + extra + body


def write(path, data):
    path.write_bytes(data)
    return path


def encoded(image, fmt, **options):
    buffer = BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def refusal(source, *words, **options):
    """load_image refuses with one printable line that names the file and has the words."""
    with pytest.raises(InputError) as caught:
        load_image(source, **options)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 700, message
    if isinstance(source, Path):
        assert str(source)[:200] in message
    for word in words:
        assert word in message, message


# --------------------------------------------------------------------------- parity


@pytest.fixture(scope="module")
def reference_class():
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    return module.Qwen2VLImageProcessorPil


def assert_bit_equal(reference_class, image, settings):
    expected = reference_class(**settings)(images=[image], return_tensors="np")
    pixels, grid = patchify(image, ImageConfig.from_dict(settings))
    assert pixels.dtype == torch.float32
    assert [list(grid)] == expected["image_grid_thw"].tolist()
    assert np.array_equal(pixels.numpy(), expected["pixel_values"]), (image.size, settings)


@pytest.mark.case("O7")
@pytest.mark.parametrize(
    "settings",
    [QWEN2_VL, SMALL, HALVES]
    + [SMALL | {"temporal_patch_size": t, "merge_size": m} for t, m in [(1, 1), (1, 2), (2, 3)]],
    ids=lambda settings: "p{patch_size} t{temporal_patch_size} m{merge_size}".format(**settings),
)
def test_patches_equal_the_reference_processor_bit_for_bit(reference_class, settings):
    rng = np.random.default_rng(7)
    sizes = [tuple(int(2 ** rng.uniform(1, 8.6)) for _ in range(2)) for _ in range(12)]
    sizes += [(8, 8), (1, 1), (1, 200), (200, 1), (5, 999), (28, 28), (71, 43), (803, 601)]
    for seed, size in enumerate(sizes):
        assert_bit_equal(reference_class, noise(*size, seed), settings)
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)  # every value of a byte, not resized
    every_value = Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], axis=-1))
    exact = {"patch_size": 8, "merge_size": 2, "min_pixels": 1, "max_pixels": 256}
    assert_bit_equal(reference_class, every_value, settings | exact)


PUBLISHED = {  # the fields of each family's preprocessor_config.json
    "Qwen2-VL, Qwen2.5-VL": QWEN2_VL,
    "Qwen3-VL": {
        **{"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2},
        **{"size": {"shortest_edge": 65536, "longest_edge": 16777216}},
        **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    },
}


@pytest.mark.case("O7")
@pytest.mark.parametrize("family", PUBLISHED)
def test_two_hundred_pictures_are_cut_as_each_family_s_processor_cuts_them(reference_class, family):
    rng = np.random.default_rng(11)
    for seed in range(200):
        size = tuple(int(2 ** rng.uniform(2, 9)) for _ in range(2))
        assert_bit_equal(reference_class, noise(*size, seed), PUBLISHED[family])


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB"])
def test_opaque_modes_equal_the_reference_after_load_image(reference_class, mode):
    image = noise(90, 50).convert(mode)
    expected = reference_class(**SMALL)(images=[image], return_tensors="np")["pixel_values"]
    pixels, _ = patchify(load_image(image), ImageConfig.from_dict(SMALL))
    assert np.array_equal(pixels.numpy(), expected)


@pytest.mark.case("O19")
def test_smart_resize_equals_the_reference_on_a_thousand_sizes():
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    rng = np.random.default_rng(3)
    for _ in range(1000):
        height, width = (int(2 ** rng.uniform(0, 12)) for _ in range(2))
        factor = int(rng.choice([8, 14, 16, 28, 32]))
        limits = sorted(int(2 ** rng.uniform(6, 22)) for _ in range(2))
        if max(height, width) > 200 * min(height, width):
            with pytest.raises(InputError, match="aspect ratio"):
                smart_resize(height, width, factor, *limits)
        else:
            expected = module.smart_resize(height, width, factor, *limits)
            assert smart_resize(height, width, factor, *limits) == expected


def test_rows_follow_merge_blocks_and_columns_follow_channel_frame_row_column():
    # By hand, without the reference: 4x4 patches of 2x2 pixels, no resize, mean 0 and std 1.
    cfg = ImageConfig(2, 2, 2, 1, 64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    array = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    pixels, grid = patchify(Image.fromarray(array), cfg)
    assert grid == (1, 4, 4) and tuple(pixels.shape) == (16, 24)
    assert num_image_tokens(grid, 2) == 4 and num_image_tokens((3, 6, 6), 3) == 12
    blocks = [(0, 0), (0, 2), (2, 0), (2, 2)]
    order = [(r + i, c + j) for r, c in blocks for i in (0, 1) for j in (0, 1)]
    for row, (patch_row, patch_column) in enumerate(order):
        y, x = 2 * patch_row, 2 * patch_column
        patch = array[y : y + 2, x : x + 2].transpose(2, 0, 1)[:, None].repeat(2, axis=1)
        expected = torch.from_numpy(patch.reshape(-1).astype(np.float32) / np.float32(255))
        torch.testing.assert_close(pixels[row], expected, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="RGB"):  # did not pass load_image
        patchify(Image.new("L", (32, 32)), cfg)


# --------------------------------------------------------------------------- colour modes


@pytest.mark.case("I1", "I3")
def test_i1_i3_cmyk_bilevel_and_gray_are_read_in_their_true_colours(tmp_path):
    for mode, colour, fmt, rgb in [
        ("CMYK", (0, 0, 0, 0), "JPEG", (255, 255, 255)),  # no ink on white paper
        ("CMYK", (255, 0, 0, 0), "JPEG", (0, 255, 255)),  # full cyan leaves no red
        ("1", 1, "PNG", (255, 255, 255)),
        ("L", 77, "PNG", (77, 77, 77)),
    ]:
        data = encoded(Image.new(mode, (32, 32), colour), fmt, quality=95)
        image = load_image(str(write(tmp_path / "x", data)))
        assert image.mode == "RGB"
        error = np.abs(np.asarray(image).astype(int) - np.array(rgb)).max()
        assert error <= (3 if fmt == "JPEG" else 0), mode


@pytest.mark.case("I2")
def test_i2_transparency_without_an_alpha_channel_is_composited_on_white(tmp_path):
    image = Image.new("P", (20, 20))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (0, 0, 20, 10))
    half = round(200 * 128 / 255 + 255 * 127 / 255), 127, 127
    for name, alpha, expected in [
        ("key.png", 0, (255, 255, 255)),
        ("key.gif", 0, (255, 255, 255)),
        ("table.png", b"\x80\xff", half),  # one alpha per palette entry
    ]:
        image.save(tmp_path / name, transparency=alpha)
        loaded = load_image(tmp_path / name)
        assert loaded.getpixel((5, 5)) == (0, 0, 200)
        assert np.abs(np.subtract(loaded.getpixel((5, 15)), expected)).max() <= 1
    # One transparent colour in gray, RGB and bilevel PNG.
    for mode, key, colour in [("L", 7, 9), ("RGB", (7, 8, 9), (1, 2, 3)), ("1", 0, 1)]:
        image = Image.new(mode, (20, 20), colour)
        image.paste(key, (0, 0, 20, 10))
        image.save(tmp_path / "key.png", transparency=key)
        loaded = load_image(tmp_path / "key.png")
        assert loaded.getpixel((5, 5)) == (255, 255, 255), mode
        expected = Image.new(mode, (1, 1), colour).convert("RGB").getpixel((0, 0))
        assert loaded.getpixel((5, 15)) == expected, mode


@pytest.mark.case("I3")
@pytest.mark.parametrize("alpha", [0, 1, 100, 255])
def test_i3_alpha_blends_toward_white_in_rgba_la_and_pa(alpha):
    palette = Image.new("PA", (4, 4), (1, alpha))
    palette.putpalette([0, 0, 0, 40, 80, 120])
    for image, rgb in [
        (Image.new("RGBA", (4, 4), (10, 90, 250, alpha)), (10, 90, 250)),
        (Image.new("LA", (4, 4), (60, alpha)), (60, 60, 60)),
        (palette, (40, 80, 120)),
    ]:
        expected = [(c * alpha + 255 * (255 - alpha)) / 255 for c in rgb]
        error = np.abs(np.subtract(load_image(image).getpixel((1, 1)), expected))
        assert error.max() <= 1, image.mode


def test_sixteen_bit_gray_is_scaled_not_clipped_and_its_transparent_value_white(tmp_path):
    values = [0, 128, 129, 257, 32768, 65535, 65407, 65406]
    expected = [0, 0, 1, 1, 128, 255, 255, 254]  # round(v / 257)
    rows = (b"\0" + struct.pack(">8H", *values)) * 8
    path = write(tmp_path / "deep.png", png_bytes(8, 8, 16, 0, rows))
    assert np.asarray(load_image(path))[0, :, 0].tolist() == expected
    for order in ("<u2", ">u2"):
        tiff = tmp_path / f"deep{order[1:]}.tif"
        Image.fromarray(np.array([values] * 8, dtype=order)).save(tiff)
        assert np.asarray(load_image(tiff))[3, :, 2].tolist() == expected
    transparent = png_chunk(b"tRNS", struct.pack(">H", 129))
    write(path, png_bytes(8, 8, 16, 0, rows, transparent))
    assert np.asarray(load_image(path))[0, :4, 0].tolist() == [0, 0, 255, 1]


@pytest.mark.case("I4", "I5")
@pytest.mark.parametrize("mode", ["La", "RGBa", "LAB", "HSV", "F", "I"])
def test_i4_i5_modes_that_8_bit_rgb_cannot_hold_are_refused_by_name(tmp_path, mode):
    image = Image.new(mode, (10, 10))
    refusal(image, f"mode {mode} ", "save it as 8-bit RGB")
    if mode in "FI":
        image.save(tmp_path / "x.tif")
        refusal(tmp_path / "x.tif", f"mode {mode} ", "save it as 8-bit RGB")


# The six fields of the upright picture in row-major order, worked out by hand.
TURNED = {
    1: [[0, 1, 2], [3, 4, 5]],
    2: [[2, 1, 0], [5, 4, 3]],
    3: [[5, 4, 3], [2, 1, 0]],
    4: [[3, 4, 5], [0, 1, 2]],
    5: [[0, 3], [1, 4], [2, 5]],
    6: [[3, 0], [4, 1], [5, 2]],
    7: [[5, 2], [4, 1], [3, 0]],
    8: [[2, 5], [1, 4], [0, 3]],
}


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied_once_and_the_source_not_modified(tmp_path, orientation):
    fields, exif = TURNED[orientation], Image.Exif()
    exif[0x0112] = orientation
    for fmt in ("JPEG", "PNG", "WEBP", "TIFF"):
        path = write(tmp_path / "turned", encoded(corners(), fmt, exif=exif))
        image = load_image(path)
        assert image.size == (16 * len(fields[0]), 16 * len(fields))
        centres = np.asarray(image)[8::16, 8::16].astype(int)
        assert np.abs(centres - np.array(COLOURS)[fields]).max() < 40  # lossy formats
        assert np.array_equal(load_image(image), image)  # a second pass rotates no further
        with Image.open(path) as opened:  # a PIL image is treated like its file
            assert np.array_equal(load_image(opened), image)
            if fmt != "TIFF":  # which Pillow turns itself
                assert opened.size == (48, 32) and "exif" in opened.info
    original = corners()
    load_image(original).paste((1, 2, 3), (0, 0, 48, 32))
    assert original.getpixel((0, 0)) == COLOURS[0]


INVALID_EXIF = (
    b"Exif\x00\x00garbage",
    b"Exif\x00\x00MM\x00*\xff\xff\xff\xff",
    b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01",
    b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x02\x00\x04\x00\x00\x00abcd",
    b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x63\x00\x00",
)
INVALID_XMP = (b"\xff\xfe\x00tiff:Orientation=", b'tiff:Orientation="9"', b"<x:xmpmeta")


@pytest.mark.case("I6")
@pytest.mark.filterwarnings("ignore")  # Pillow warns of the corrupt block
def test_i6_invalid_exif_or_xmp_leaves_the_picture_unrotated(tmp_path):
    files = [encoded(corners(), "JPEG", xmp=xmp) for xmp in INVALID_XMP]
    for fmt in ("JPEG", "PNG", "WEBP"):
        files += [encoded(corners(), fmt, exif=exif) for exif in INVALID_EXIF]
    for data in files:
        assert load_image(write(tmp_path / "x", data)).size == (48, 32), data[:100]


# --------------------------------------------------------------------------- damaged files


@pytest.mark.case("I7")
@pytest.mark.parametrize("fmt", FORMATS)
def test_i7_a_file_cut_in_half_is_refused_and_the_whole_one_is_read(tmp_path, fmt):
    data = encoded(noise(64, 48), fmt)
    assert load_image(write(tmp_path / "whole", data)).size == (64, 48)
    refusal(write(tmp_path / "half", data[: len(data) // 2]))


@pytest.mark.case("I7")
def test_i7_files_short_of_their_end_or_with_one_flipped_byte_are_refused(tmp_path):
    for options in ({}, {"progressive": True}, {"quality": 100, "subsampling": 0}):
        for size in ((64, 48), (17, 9), (500, 300)):
            data = encoded(noise(*size), "JPEG", **options)
            refusal(write(tmp_path / "cut.jpg", data[:-2]), "cannot be decoded")
    data = encoded(noise(64, 48), "PNG")
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    refusal(write(tmp_path / "flipped.png", bytes(flipped)))
    refusal(write(tmp_path / "no_end.png", data[:-12]))


@pytest.mark.case("I8", "I9", "I13")
@pytest.mark.parametrize(
    "data, words",
    [
        (b"", ["is empty"]),
        (b"<!DOCTYPE html><html><body>404</body></html>", ["HTML"]),
        (b"\xef\xbb\xbf\n <html><svg></svg></html>", ["HTML"]),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', ["SVG"]),
        (b"<svg width='1' height='1'></svg>", ["SVG"]),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", ["HEIC"]),
        (b"%PDF-1.7\n%abc", ["PDF"]),
        (encoded(Image.new("RGB", (10, 10)), "EPS"), ["none of JPEG"]),  # starts Ghostscript
        (b"just text", ["none of JPEG", "convert it to PNG or JPEG"]),
        (b"\xff\xd8\xff", ["damaged"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_i8_i9_i13_empty_files_and_foreign_formats_are_refused_by_name(tmp_path, data, words):
    refusal(write(tmp_path / "picture.jpg", data), *words)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fmt", FORMATS)
def test_random_damage_is_either_read_or_refused_but_never_crashes(tmp_path, fmt):
    rng = np.random.default_rng(11)
    data = encoded(noise(24, 16), fmt)
    path = tmp_path / "damaged"
    for _ in range(40):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 200), rng.integers(1, 6)):
            damaged[place] = rng.integers(0, 256)
        try:
            assert load_image(write(path, bytes(damaged)), 10**6).mode == "RGB"
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)


# --------------------------------------------------------------------------- size, shape, path


@pytest.mark.case("I10")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_i10_a_small_file_of_many_pixels_is_refused_undecoded(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for side in (12_000, 60_000):
        refusal(write(tmp_path / "x.png", png_bytes(side, side, 1, 0, b"\0" * 1000)), "pixels")
    path = write(tmp_path / "huge.webp", encoded(noise(8, 8), "WEBP"))
    os.truncate(path, 10**9)  # sparse
    refusal(path, "is larger than")


@pytest.mark.case("I10")
def test_i10_the_cap_is_exact_and_ignores_pillows_own_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    noise(20, 10).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png", max_image_pixels=200).size == (20, 10)
    words = "20x10 = 200 pixels", "downscale the picture"
    refusal(tmp_path / "x.png", *words, max_image_pixels=199)
    refusal(noise(20, 10), *words, max_image_pixels=199)
    refusal(Image.new("RGB", (0, 5)), "0x5")


@pytest.mark.case("I11")
def test_i11_aspect_ratios_above_200_are_refused_with_the_ratio(tmp_path):
    noise(200, 1).save(tmp_path / "ok.png")
    assert load_image(tmp_path / "ok.png").size == (200, 1)
    for size in ((201, 1), (1, 201)):
        noise(*size).save(tmp_path / "thin.png")
        refusal(tmp_path / "thin.png", "aspect ratio 201.0")
    path = write(tmp_path / "line.png", png_bytes(4_000_000, 1, 1, 0, b"\0" * 500_001))
    refusal(path, "aspect ratio 4000000.0")
    with pytest.raises(InputError, match=r"1001x5 has aspect ratio 200\.2"):
        smart_resize(5, 1001, 28, 3136, 10**6)


@pytest.mark.case("I12")
def test_i12_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in COLOURS[:3]]
    for name in ("x.gif", "x.png", "x.webp"):
        options = {"lossless": True} if name == "x.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        with Image.open(tmp_path / name) as image:
            assert image.n_frames == 3
        assert load_image(tmp_path / name).getpixel((8, 8)) == COLOURS[0]


@pytest.mark.case("I14", "I16")
def test_i14_i16_what_is_no_regular_file_is_refused_without_hanging(tmp_path):
    refusal(tmp_path / "nothing.png", "No such file", "check the path")
    refusal(tmp_path, "not a regular file")
    os.mkfifo(tmp_path / "fifo.png")
    refusal(tmp_path / "fifo.png", "not a regular file")
    refusal(Path("/dev/zero"), "not a regular file")
    for name in ("a\0b.png", "x" * 5000, "no\nnewline\x1b[31m.png"):  # one printable line each
        refusal(name)


@pytest.mark.case("I17")
def test_i17_urls_are_refused_and_links_and_names_with_a_colon_read(tmp_path):
    for url in ("http://a/b.png", "HTTPS://a/b.png", "file:///etc/hostname", "s3://b/k.png"):
        refusal(url, "is a URL")
    refusal("data:image/png;base64," + "A" * 100_000, "is a URL")
    noise(9, 9).save(tmp_path / "a: b.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a: b.png")
    assert load_image(tmp_path / "link.png").size == (9, 9)
    assert load_image(str(tmp_path / "a: b.png")).size == (9, 9)


def test_both_spellings_of_the_area_limits_give_one_config(reference_class):
    other = {key: value for key, value in QWEN2_VL.items() if not key.endswith("_pixels")}
    other["size"] = {"shortest_edge": 56 * 56, "longest_edge": 14 * 14 * 4 * 1280}
    cfg = ImageConfig.from_dict(QWEN2_VL)
    assert ImageConfig.from_dict(other) == cfg
    assert ImageConfig.from_dict(other | {"min_pixels": None, "max_pixels": None}) == cfg
    assert ImageConfig.from_dict(other | {"min_pixels": 4000}).min_pixels == 4000  # it wins
    assert ImageConfig.from_dict(reference_class(**QWEN2_VL).to_dict()) == cfg
    assert cfg.max_pixels == 14 * 14 * 4 * 1280 and cfg.image_std[2] == 0.27577711


INVALID = {
    "patch_size": [0, True, "14", None],
    "merge_size": [2.0, None],
    "temporal_patch_size": [-1, None],
    "min_pixels": [10**9, None],
    "max_pixels": [None],
    "image_mean": [0.5, [0.5, 0.5], [0.5, 0.5, "0.5"], [0.5, 0.5, float("nan")], None],
    "image_std": [[0.5, 0.5, 0], [0.5, 0.5, 10**400], [0.5, 0.5, -1.0], None],
    "do_resize": [False],
    "do_normalize": [False],
    "resample": [2],
    "rescale_factor": [1.0],
}


@pytest.mark.parametrize("key", INVALID)
def test_a_missing_invalid_or_unsupported_value_is_refused_by_name(key):
    for value in INVALID[key]:
        for settings in (QWEN2_VL, QWEN2_VL | {"size": "big"}):
            with pytest.raises(InputError, match=f"my/config.json: '{key}'"):
                ImageConfig.from_dict(settings | {key: value}, "my/config.json")
