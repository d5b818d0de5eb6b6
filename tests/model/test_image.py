"""Guarantees of model/image.py, each test one of them. Run: pytest tests/model/test_image.py

- `patchify` equals transformers' Qwen2VLImageProcessorPil bit for bit, over sizes and patch sizes.
- Every kind of single picture has one documented outcome: read correctly, or an InputError of one
  line that names the file. Nothing hangs and nothing is decoded before its size is known.
Pixel expectations are written down by hand or computed without Pillow's conversions.
"""

import os
import re
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from model.image import ImageConfig, load_image, num_image_tokens, patchify, smart_resize
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


def noise(width, height, seed=0, mode="RGB"):
    rng = np.random.default_rng(seed)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def corners():
    """A 48x32 picture in six flat fields, 3 columns by 2 rows, so that each rotation shows."""
    array = np.zeros((32, 48, 3), dtype=np.uint8)
    for i, colour in enumerate(COLOURS):
        array[16 * (i // 3) : 16 * (i // 3) + 16, 16 * (i % 3) : 16 * (i % 3) + 16] = colour
    return Image.fromarray(array)


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
    """The message with which load_image refuses: one printable line, naming the file."""
    with pytest.raises(InputError) as caught:
        load_image(source, **options)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 700, message
    if isinstance(source, Path):
        assert str(source)[:200] in message
    for word in words:
        assert word in message, message
    return message


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
@pytest.mark.parametrize("settings", [QWEN2_VL, SMALL, HALVES], ids=["p14", "p8", "p16"])
def test_patches_equal_the_reference_processor_bit_for_bit_at_random_sizes(
    reference_class, settings
):
    rng = np.random.default_rng(7)
    for seed in range(40):
        width, height = (int(2 ** rng.uniform(1, 8.6)) for _ in range(2))
        assert_bit_equal(reference_class, noise(width, height, seed), settings)


@pytest.mark.case("O7")
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (1, 200), (200, 1), (5, 999), (28, 28), (71, 43)])
@pytest.mark.parametrize("settings", [QWEN2_VL, SMALL], ids=["p14", "p8"])
def test_tiny_and_extreme_pictures_equal_the_reference(reference_class, size, settings):
    assert_bit_equal(reference_class, noise(*size), settings)


def test_a_picture_above_max_pixels_equals_the_reference(reference_class):
    assert_bit_equal(reference_class, noise(1601, 1203), QWEN2_VL)
    assert_bit_equal(reference_class, noise(1601, 1203), SMALL)


@pytest.mark.parametrize("temporal, merge", [(1, 1), (1, 2), (2, 3), (4, 1)])
def test_other_temporal_and_merge_sizes_equal_the_reference(reference_class, temporal, merge):
    settings = SMALL | {"temporal_patch_size": temporal, "merge_size": merge}
    assert_bit_equal(reference_class, noise(100, 61), settings)


def test_every_byte_value_is_normalised_like_the_reference(reference_class):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], axis=-1))
    for settings in (SMALL, HALVES):
        settings = settings | {"patch_size": 8, "min_pixels": 1, "max_pixels": 256}
        assert_bit_equal(reference_class, image, settings)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB"])
def test_opaque_modes_equal_the_reference_after_load_image(reference_class, mode):
    image = noise(90, 50).convert(mode)
    expected = reference_class(**SMALL)(images=[image], return_tensors="np")["pixel_values"]
    pixels, _ = patchify(load_image(image), ImageConfig.from_dict(SMALL))
    assert np.array_equal(pixels.numpy(), expected)


@pytest.mark.case("O19")
def test_smart_resize_equals_the_reference_on_a_thousand_sizes():
    name = "transformers.models.qwen2_vl.image_processing_qwen2_vl"
    module = pytest.importorskip(name.replace("image_processing_", "image_processing_pil_"))
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
    assert num_image_tokens(grid, 2) == 4
    blocks = [(0, 0), (0, 2), (2, 0), (2, 2)]
    order = [(r + i, c + j) for r, c in blocks for i in (0, 1) for j in (0, 1)]
    for row, (patch_row, patch_column) in enumerate(order):
        y, x = 2 * patch_row, 2 * patch_column
        patch = array[y : y + 2, x : x + 2].transpose(2, 0, 1)[:, None].repeat(2, axis=1)
        expected = torch.from_numpy(patch.reshape(-1).astype(np.float32) / np.float32(255))
        torch.testing.assert_close(pixels[row], expected, rtol=1e-6, atol=0)


def test_number_of_image_tokens_is_the_grid_over_the_merged_blocks():
    assert num_image_tokens((1, 6, 4), 2) == 6
    assert num_image_tokens((3, 6, 6), 3) == 12


def test_patchify_rejects_a_picture_that_did_not_pass_load_image():
    with pytest.raises(ValueError, match="RGB"):
        patchify(Image.new("L", (32, 32)), ImageConfig.from_dict(SMALL))


# --------------------------------------------------------------------------- colour modes


@pytest.mark.case("I1")
def test_i1_cmyk_jpeg_is_read_in_its_true_colours(tmp_path):
    # Ink 0 is white paper; full cyan leaves no red. Tolerance: JPEG.
    for ink, colour in [((0, 0, 0, 0), (255, 255, 255)), ((255, 0, 0, 0), (0, 255, 255))]:
        data = encoded(Image.new("CMYK", (32, 32), ink), "JPEG", quality=95)
        image = load_image(write(tmp_path / "cmyk.jpg", data))
        assert image.mode == "RGB"
        assert np.abs(np.asarray(image).astype(int) - np.array(colour)).max() <= 3


@pytest.mark.case("I2")
def test_i2_palette_transparency_is_composited_on_white(tmp_path):
    image = Image.new("P", (20, 20))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (0, 0, 20, 10))
    path = tmp_path / "palette.png"
    image.save(path, transparency=0)
    assert load_image(path).getpixel((5, 5)) == (0, 0, 200)
    assert load_image(path).getpixel((5, 15)) == (255, 255, 255)
    image.save(path, transparency=b"\x80\xff")  # one alpha per palette entry
    assert load_image(path).getpixel((5, 5)) == (0, 0, 200)
    blended = round(200 * 128 / 255 + 255 * 127 / 255)
    assert np.abs(np.subtract(load_image(path).getpixel((5, 15)), (blended, 127, 127))).max() <= 1
    image.save(tmp_path / "palette.gif", transparency=0)
    assert load_image(tmp_path / "palette.gif").getpixel((5, 15)) == (255, 255, 255)


@pytest.mark.case("I2")
def test_i2_one_transparent_colour_in_gray_rgb_and_bilevel_png_becomes_white(tmp_path):
    for mode, hidden, shown in [("L", 7, 9), ("RGB", (7, 8, 9), (1, 2, 3)), ("1", 0, 1)]:
        image = Image.new(mode, (20, 20), shown)
        image.paste(hidden, (0, 0, 20, 10))
        image.save(tmp_path / "key.png", transparency=hidden)
        loaded = load_image(tmp_path / "key.png")
        assert loaded.getpixel((5, 5)) == (255, 255, 255), mode
        expected = Image.new(mode, (1, 1), shown).convert("RGB").getpixel((0, 0))
        assert loaded.getpixel((5, 15)) == expected, mode


@pytest.mark.case("I3")
@pytest.mark.parametrize("alpha", [0, 1, 100, 128, 254, 255])
def test_i3_alpha_blends_toward_white_in_rgba_la_and_pa(alpha):
    white_share = 255 - alpha
    for mode, colour, rgb in [
        ("RGBA", (10, 90, 250, alpha), (10, 90, 250)),
        ("LA", (60, alpha), (60, 60, 60)),
    ]:
        expected = [(c * alpha + 255 * white_share) / 255 for c in rgb]
        loaded = load_image(Image.new(mode, (4, 4), colour))
        assert np.abs(np.array(loaded.getpixel((1, 1))) - expected).max() <= 1, mode
    pa = Image.new("PA", (4, 4), (1, alpha))
    pa.putpalette([0, 0, 0, 40, 80, 120])
    expected = [(c * alpha + 255 * white_share) / 255 for c in (40, 80, 120)]
    assert np.abs(np.array(load_image(pa).getpixel((1, 1))) - expected).max() <= 1


@pytest.mark.case("I3")
def test_i3_bilevel_and_gray_keep_their_values(tmp_path):
    Image.new("1", (10, 10), 1).save(tmp_path / "one.png")
    Image.new("L", (10, 10), 77).save(tmp_path / "gray.png")
    assert load_image(tmp_path / "one.png").getpixel((0, 0)) == (255, 255, 255)
    assert load_image(str(tmp_path / "gray.png")).getpixel((0, 0)) == (77, 77, 77)


def test_sixteen_bit_gray_is_scaled_and_not_clipped(tmp_path):
    values = [0, 128, 129, 257, 32768, 65535, 65407, 65406]
    expected = [0, 0, 1, 1, 128, 255, 255, 254]  # round(v / 257)
    rows = (b"\0" + struct.pack(">8H", *values)) * 8
    path = write(tmp_path / "deep.png", png_bytes(8, 8, 16, 0, rows))
    assert np.asarray(load_image(path))[0, :, 0].tolist() == expected
    for order in ("<u2", ">u2"):
        tiff = tmp_path / f"deep{order[1:]}.tif"
        Image.fromarray(np.array([values] * 8, dtype=order)).save(tiff)
        assert np.asarray(load_image(tiff))[3, :, 2].tolist() == expected


def test_sixteen_bit_gray_with_a_transparent_value_becomes_white_there(tmp_path):
    rows = (b"\0" + struct.pack(">8H", *[1000, 2000] * 4)) * 8
    trns = png_chunk(b"tRNS", struct.pack(">H", 1000))
    path = write(tmp_path / "deep.png", png_bytes(8, 8, 16, 0, rows, trns))
    assert np.asarray(load_image(path))[0, :2, 0].tolist() == [255, 8]


@pytest.mark.case("I4")
@pytest.mark.parametrize("mode, word", [("F", "mode F"), ("I", "mode I ")])
def test_i4_float_and_32_bit_pictures_are_refused(tmp_path, mode, word):
    Image.new(mode, (10, 10)).save(tmp_path / "x.tif")
    refusal(tmp_path / "x.tif", word, "save it as 8-bit RGB")


@pytest.mark.case("I5")
@pytest.mark.parametrize("mode", ["La", "RGBa", "LAB", "HSV", "F", "I"])
def test_i5_modes_without_one_reading_are_refused_by_name(mode):
    refusal(Image.new(mode, (10, 10)), f"mode {mode} ")


# --------------------------------------------------------------------------- EXIF


# What stands upright where, worked out by hand: the new row-major order of the six fields.
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
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once_and_only_once(tmp_path, orientation, fmt):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "turned", encoded(corners(), fmt, exif=exif))
    image = load_image(path)
    fields = TURNED[orientation]
    assert image.size == (16 * len(fields[0]), 16 * len(fields))
    for row, line in enumerate(fields):
        for column, field in enumerate(line):
            seen = np.array(image.getpixel((16 * column + 8, 16 * row + 8)))
            assert np.abs(seen - COLOURS[field]).max() < 40  # lossy formats
    assert np.array_equal(load_image(image), image)  # a second pass rotates no further
    with Image.open(path) as opened:
        assert np.array_equal(load_image(opened), image)  # a PIL image is treated like its file


@pytest.mark.case("I6")
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00\x00garbage",
        b"Exif\x00\x00MM\x00*\xff\xff\xff\xff",
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01",
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x02\x00\x04\x00\x00\x00abcd",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x63\x00\x00",
    ],
)
def test_i6_invalid_exif_leaves_the_picture_unrotated(tmp_path, exif):
    for fmt in ("JPEG", "PNG", "WEBP"):
        path = write(tmp_path / "x", encoded(corners(), fmt, exif=exif))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of the corrupt block, rightly
            assert load_image(path).size == (48, 32)


@pytest.mark.case("I6")
def test_i6_invalid_xmp_leaves_the_picture_unrotated(tmp_path):
    for xmp in (b"\xff\xfe\x00tiff:Orientation=", b'tiff:Orientation="9"', b"<x:xmpmeta"):
        path = write(tmp_path / "x.jpg", encoded(corners(), "JPEG", xmp=xmp))
        assert load_image(path).size == (48, 32)


def test_the_callers_picture_is_not_modified():
    exif = Image.Exif()
    exif[0x0112] = 6
    original = Image.open(BytesIO(encoded(corners(), "PNG", exif=exif)))
    load_image(original)
    assert original.size == (48, 32) and "exif" in original.info
    plain = corners()
    load_image(plain).paste((1, 2, 3), (0, 0, 48, 32))
    assert plain.getpixel((0, 0)) == COLOURS[0]


# --------------------------------------------------------------------------- damaged files


@pytest.mark.case("I7")
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_i7_a_file_cut_in_half_is_refused_and_the_whole_one_is_read(tmp_path, fmt):
    data = encoded(noise(64, 48), fmt)
    assert load_image(write(tmp_path / "whole", data)).size == (64, 48)
    refusal(write(tmp_path / "half", data[: len(data) // 2]))


@pytest.mark.case("I7")
def test_i7_a_jpeg_without_its_last_two_bytes_is_refused(tmp_path):
    for options in ({}, {"progressive": True}, {"quality": 100, "subsampling": 0}):
        for size in ((64, 48), (17, 9), (500, 300)):
            data = encoded(noise(*size), "JPEG", **options)
            refusal(write(tmp_path / "cut.jpg", data[:-2]), "cannot be decoded")


@pytest.mark.case("I7")
def test_i7_a_png_with_one_flipped_byte_or_no_end_is_refused(tmp_path):
    data = encoded(noise(64, 48), "PNG")
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    refusal(write(tmp_path / "flipped.png", bytes(flipped)))
    refusal(write(tmp_path / "no_end.png", data[:-12]))


@pytest.mark.case("I8")
def test_i8_an_empty_file_is_refused(tmp_path):
    refusal(write(tmp_path / "empty.jpg", b""), "is empty")


@pytest.mark.case("I9", "I13")
@pytest.mark.parametrize(
    "data, word",
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"\xef\xbb\xbf\n <html><svg></svg></html>", "HTML"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<svg width='1' height='1'></svg>", "SVG"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
        (b"%PDF-1.7\n%abc", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "none of JPEG"),
        (b"just text", "none of JPEG"),
        (b"\xff\xd8\xff", "damaged"),
    ],
)
def test_i9_i13_foreign_formats_are_refused_by_name(tmp_path, data, word):
    refusal(write(tmp_path / "picture.jpg", data), word, "convert it to PNG or JPEG")


@pytest.mark.case("I13")
def test_eps_is_never_handed_to_an_external_program(tmp_path):
    path = tmp_path / "x.eps"
    Image.new("RGB", (10, 10)).save(path)
    refusal(path, "none of JPEG")


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_random_damage_is_either_read_or_refused_but_never_crashes(tmp_path, fmt):
    rng = np.random.default_rng(11)
    data = encoded(noise(24, 16), fmt)
    path = tmp_path / "damaged"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, min(len(data), 200), rng.integers(1, 6)):
                damaged[place] = rng.integers(0, 256)
            try:
                assert load_image(write(path, bytes(damaged)), 10**6).mode == "RGB"
            except InputError as error:
                assert str(path) in str(error) and "\n" not in str(error)


# --------------------------------------------------------------------------- size and shape


@pytest.mark.case("I10")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [12_000, 20_000, 60_000])
def test_i10_a_small_file_of_many_pixels_is_refused_undecoded(tmp_path, side, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    path = write(tmp_path / "bomb.png", png_bytes(side, side, 1, 0, b"\0" * 1000))
    refusal(path, "pixels")


@pytest.mark.case("I10")
def test_i10_the_cap_is_exact_and_ignores_pillows_own_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    noise(20, 10).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png", max_image_pixels=200).size == (20, 10)
    message = refusal(tmp_path / "x.png", "raise max_image_pixels", max_image_pixels=199)
    assert "20x10 = 200 pixels" in message
    refusal(noise(20, 10), "20x10 = 200 pixels", max_image_pixels=199)


def test_a_file_too_large_for_its_pixel_cap_is_refused_unread(tmp_path):
    path = write(tmp_path / "huge.webp", encoded(noise(8, 8), "WEBP"))
    os.truncate(path, 10**9)  # sparse
    refusal(path, "is larger than")


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


def test_a_picture_without_pixels_is_refused():
    refusal(Image.new("RGB", (0, 5)), "0x5")


@pytest.mark.case("I12")
def test_i12_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in COLOURS[:3]]
    for name in ("x.gif", "x.png", "x.webp"):
        options = {"lossless": True} if name == "x.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        with Image.open(tmp_path / name) as image:
            assert image.n_frames == 3
        assert load_image(tmp_path / name).getpixel((8, 8)) == COLOURS[0]


# --------------------------------------------------------------------------- paths


@pytest.mark.case("I14")
def test_i14_a_missing_file_is_refused(tmp_path):
    refusal(tmp_path / "nothing.png", "No such file", "check the path")


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000, "no\nnewline\x1b[31m.png"])
def test_odd_names_are_refused_on_one_printable_line(name):
    refusal(name)


@pytest.mark.case("I16")
def test_i16_directories_fifos_and_devices_are_refused_without_hanging(tmp_path):
    refusal(tmp_path, "not a regular file")
    os.mkfifo(tmp_path / "fifo.png")
    refusal(tmp_path / "fifo.png", "not a regular file")
    refusal(Path("/dev/zero"), "not a regular file")


@pytest.mark.case("I17")
@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "HTTPS://example.org/a.png",
        "file:///etc/hostname",
        "s3://bucket/key.png",
        "data:image/png;base64," + "A" * 100_000,
    ],
)
def test_i17_urls_are_refused(url):
    refusal(url, "is a URL")


def test_a_link_to_a_picture_and_a_name_with_a_colon_are_read(tmp_path):
    noise(9, 9).save(tmp_path / "a: b.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a: b.png")
    assert load_image(tmp_path / "link.png").size == (9, 9)
    assert load_image(str(tmp_path / "a: b.png")).size == (9, 9)


# --------------------------------------------------------------------------- configuration


def test_both_spellings_of_the_area_limits_give_one_config():
    other = {key: value for key, value in QWEN2_VL.items() if not key.endswith("_pixels")}
    other["size"] = {"shortest_edge": 56 * 56, "longest_edge": 14 * 14 * 4 * 1280}
    cfg = ImageConfig.from_dict(QWEN2_VL)
    assert ImageConfig.from_dict(other) == cfg
    assert ImageConfig.from_dict(other | {"min_pixels": None, "max_pixels": None}) == cfg
    assert ImageConfig.from_dict(other | {"min_pixels": 4000}).min_pixels == 4000  # it wins
    assert cfg.max_pixels == 14 * 14 * 4 * 1280 and cfg.image_std[2] == 0.27577711


def test_a_config_saved_by_the_reference_processor_is_read(reference_class):
    cfg = ImageConfig.from_dict(reference_class(**SMALL).to_dict())
    assert cfg == ImageConfig.from_dict(SMALL)


@pytest.mark.parametrize("key", QWEN2_VL)
def test_a_missing_key_is_named(key):
    settings = {k: v for k, v in QWEN2_VL.items() if k != key}
    with pytest.raises(InputError, match=f"my/config.json: '{key}'"):
        ImageConfig.from_dict(settings, source="my/config.json")


@pytest.mark.parametrize(
    "key, value",
    [
        ("patch_size", 0),
        ("patch_size", True),
        ("patch_size", "14"),
        ("merge_size", 2.0),
        ("temporal_patch_size", -1),
        ("min_pixels", 10**9),
        ("size", "big"),
        ("image_mean", 0.5),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", [0.5, 0.5, "0.5"]),
        ("image_mean", [0.5, 0.5, float("nan")]),
        ("image_std", [0.5, 0.5, 0]),
        ("image_std", [0.5, 0.5, 10**400]),
        ("image_std", [0.5, 0.5, -1.0]),
        ("do_resize", False),
        ("do_normalize", False),
        ("resample", 2),
        ("rescale_factor", 1.0),
    ],
)
def test_an_invalid_or_unsupported_value_is_refused_by_name(key, value):
    settings = QWEN2_VL | {key: value}
    if key == "size":
        settings = {k: v for k, v in settings.items() if not k.endswith("_pixels")}
        key = "min_pixels"
    with pytest.raises(InputError, match=re.escape(f"'{key}'")):
        ImageConfig.from_dict(settings)


def test_a_config_that_is_no_object_is_refused():
    with pytest.raises(InputError, match="must be a JSON object, got list"):
        ImageConfig.from_dict([])


def test_the_module_does_not_import_transformers():
    source = Path(__file__).parents[2] / "model" / "image.py"
    assert not re.search(r"^\s*(import|from) transformers", source.read_text(), re.MULTILINE)
