"""What data/box_formats.py guarantees about box coordinates.

Every format names the same region of the upright image: there and back again moves nothing, writing
integers moves a side by half a unit at most, and each model family gets the format it was taught.
Boxes of other conventions are refused with a hint. Run: pytest tests/data/test_box_formats.py
"""

import io
import itertools
import random

import pytest
from PIL import Image

from data.box_formats import (
    canvas_size,
    clipped,
    convert_box,
    default_box_format,
    raw_box,
    round_box,
)
from model.image import load_image, smart_resize
from runtime.errors import InputError

FORMATS = ("norm1000", "abs", "abs_resized", "norm1", "norm100")


def resized_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) after Qwen2.5-VL's resize: multiples of 28."""
    return smart_resize(size[1], size[0], 28, 56 * 56, 401408)[::-1]


def test_one_box_in_all_formats_by_hand():
    sizes = (400, 200), (392, 196)
    pixels, thousandths = (40, 50, 400, 200), (100, 250, 1000, 1000)
    assert convert_box(pixels, "abs", "norm1000", *sizes) == thousandths
    assert convert_box(thousandths, "norm1000", "abs", *sizes) == pixels
    resized = convert_box(pixels, "abs", "abs_resized", *sizes)
    assert resized == pytest.approx((39.2, 49, 392, 196))


@pytest.mark.case("O19")
def test_o19_500_random_boxes_come_back_and_integers_are_half_a_unit_off_at_most():
    rng = random.Random(0)
    for _ in range(500):
        size = (rng.randint(28, 4000), rng.randint(28, 4000))
        resized = resized_size(size)
        (x1, x2), (y1, y2) = (sorted(rng.uniform(0, side) for _ in range(2)) for side in size)
        box = (x1, y1, x2, y2)
        for a, b in itertools.product(FORMATS, repeat=2):
            full = (0, 0, *canvas_size(a, size, resized))
            assert convert_box(full, a, b, size, resized)[2:] == canvas_size(b, size, resized)
            assert round_box(full, full[2:]) == full
        for name in FORMATS:
            there = convert_box(box, "abs", name, size, resized)
            assert convert_box(there, name, "abs", size, resized) == pytest.approx(box, abs=1e-6)
            if min(there[2] - there[0], there[3] - there[1]) < 1:
                continue
            canvas = canvas_size(name, size, resized)
            written = round_box(there, canvas)
            assert max(abs(a - b) for a, b in zip(written, there, strict=True)) <= 0.5
            back = convert_box(written, name, "abs", size, resized)
            unit = max(s / c for s, c in zip(size, canvas, strict=True))
            assert max(abs(a - b) for a, b in zip(back, box, strict=True)) <= 0.5 * unit + 1e-9


@pytest.mark.case("O19")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_o19_boxes_of_exif_rotated_pictures_refer_to_the_upright_image(orientation):
    picture = Image.new("RGB", (90, 60), "white")
    exif = picture.getexif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    upright = load_image(Image.open(buffer)).size
    assert upright == ((90, 60) if orientation < 5 else (60, 90))
    box, resized = (0, 0, *upright), resized_size(upright)
    assert convert_box(box, "abs", "norm1000", upright, resized) == (0, 0, 1000, 1000)
    assert convert_box(box, "abs", "abs_resized", upright, resized) == (0, 0, *resized)
    assert (resized[0] > resized[1]) == (upright[0] > upright[1])


@pytest.mark.parametrize(
    "box, expected",
    [
        ((0.5, 1.5, 2.49, 3.5), (1, 2, 2, 4)),
        ((-3, -0.0, 12, 99), (0, 0, 10, 10)),
        ((4.2, 4.2, 4.4, 4.4), (4, 4, 5, 5)),
        ((9.9, 9.9, 10, 10), (9, 9, 10, 10)),
    ],
)
def test_rounded_boxes_lie_inside_and_keep_an_area(box, expected):
    assert round_box(box, (10, 10)) == expected


def test_each_model_family_has_its_format_and_others_need_the_flag():
    families = {"qwen2_vl": "norm1000", "qwen2_5_vl": "abs_resized", "qwen3_vl": "norm1000"}
    assert {name: default_box_format(name) for name in families} == families
    with pytest.raises(InputError, match="--coords: no default for model_type 'llava'"):
        default_box_format("llava")


@pytest.mark.parametrize(
    "values, shape, expected",
    [
        ([1, 2, 3, 4], "xywh", (1, 2, 4, 6)),
        ([1, 2, 3, 4], "xyxy", (1, 2, 3, 4)),
        ([-0.9, 0, 100.9, 50.5], "xyxy", (0, 0, 100, 50)),
        ([90, 40, 95, 40], "extent", None),
        ([-9, -9, 400, 400], "extent", (0, 0, 100, 50)),
        ([5, 5, 0, 9], "xywh", None),
        ([5, 5, 5, 9], "xyxy", None),
    ],
)
def test_boxes_are_read_by_their_convention_and_clipped(values, shape, expected):
    assert clipped(raw_box(values, "here", shape), (100, 50)) == expected


@pytest.mark.case("I25", "I29")
@pytest.mark.parametrize(
    "values, shape, message",
    [
        pytest.param(
            [60, 10, 30, 40], "xyxy", "ends before.*is it x, y, width", id="i29-xywh-as-xyxy"
        ),
        pytest.param([5, 5, -2, 9], "xywh", "negative side", id="i25-negative-width"),
        pytest.param([0, 0, float("nan"), 9], "xyxy", "not four numbers", id="i25-nan"),
        pytest.param([0, 0, float("inf"), 9], "xyxy", "not four numbers", id="i25-inf"),
        pytest.param([0, 0, 10**400, 9], "xyxy", "not four numbers", id="i25-huge"),
        pytest.param([0, 0, True, 9], "xyxy", "not four numbers", id="bool"),
        pytest.param([0, 0, "5", 9], "xyxy", "not four numbers", id="text"),
        pytest.param([0, 0, 9], "xyxy", "not four numbers", id="three"),
        pytest.param(None, "xywh", "not four numbers", id="none"),
    ],
)
def test_boxes_that_cannot_be_meant_are_refused_with_their_id(values, shape, message):
    with pytest.raises(InputError, match=f"row 7: box.*{message}"):
        raw_box(values, "row 7", shape)
