"""How the garden looks: flowers, portraits and scenes as pictures, each a function of its seed.

Petals are polygons, rotated and mapped into a box, painted at four times the size and reduced
(anti-aliasing), then pasted on a background of a gradient and noise. Position, scale, rotation,
tilt, colours, light and background vary with the seed; the attributes never do.
Next: data/garden/questions.py, what can be asked about these pictures.
"""

import math
import random
from collections.abc import Mapping
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data.garden.world import NO_CAUSES, PORTRAIT_SIZE, SCENE_SIZE, Flower, Scene

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
SUPERSAMPLE = 4  # flowers are painted this many times larger, then reduced
PETAL_RGB: dict[str, RGB] = {
    "red": (208, 28, 34),
    "orange": (245, 128, 12),
    "yellow": (252, 218, 40),
    "white": (246, 245, 240),
    "pink": (248, 140, 184),
    "purple": (136, 44, 170),
    "blue": (44, 82, 214),
}
CENTRE_RGB: dict[str, RGB] = {
    "yellow": (255, 214, 38),
    "brown": (92, 52, 22),
    "white": (250, 248, 242),
    "green": (66, 150, 52),
}
WILT_RGB: RGB = (96, 72, 44)
BACKGROUND_RGB: dict[str, tuple[RGB, RGB]] = {  # colour at the top, colour at the bottom
    "sky": ((138, 182, 214), (192, 216, 222)),
    "grass": ((88, 126, 66), (124, 156, 84)),
    "soil": ((112, 90, 68), (146, 122, 94)),
}


@cache
def _petal_outline(shape: str, petals: int) -> np.ndarray:
    """One petal along the x axis, base at 0 and tip at 1, as a polygon (K, 2), float64.

    The half width is that of the shape, or less where neighbours would hide each other: at
    distance t from the centre, `petals` petals have t * sin(pi / petals) each.
    """
    room = math.sin(math.pi / petals)
    if shape == "heart":  # the classic heart curve, its tip at the flower's centre
        angle = np.linspace(0, 2 * np.pi, 33)[:-1]
        x = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
        along = (x + 17) / (x.max() + 17)  # the notch lies at 0.76
        # Narrow petals get a shallower notch: two deep lobes would read as two petals.
        notch = np.exp(-((np.sin(angle) / 0.5) ** 2)) * (np.cos(angle) > 0)
        along += 0.26 * (1 - room) * notch
        return np.stack([along, np.sin(angle) ** 3 * min(0.42, 0.65 * room)], axis=1)
    if shape == "thin":
        angle = np.linspace(-np.pi / 2, np.pi / 2, 9)
        tip = np.stack([0.89 + 0.11 * np.cos(angle), 0.11 * np.sin(angle)], axis=1)
        return np.concatenate([[(0.0, -0.08)], tip, [(0.0, 0.08)]])
    t = np.linspace(0, 1, 17)
    if shape == "round":
        half = min(0.40, 0.62 * room) * np.sqrt(np.maximum(0, 1 - ((t - 0.58) / 0.42) ** 2))
    else:  # pointed: swells to the middle, then runs straight to a sharp tip
        half = min(0.26, 0.5 * room) * np.where(
            t < 0.45, np.sin(np.pi / 2 * np.minimum(t / 0.45, 1)) ** 0.7, (1 - t) / 0.55
        )
    return np.concatenate([np.stack([t, -half], 1), np.stack([t, half], 1)[::-1]])


def _shade(rgb: RGB, factor: float) -> RGB:
    """Darken (factor < 1) or lighten (factor > 1, towards white) a colour."""
    if factor <= 1:
        return tuple(int(c * factor) for c in rgb)
    return tuple(int(c + (255 - c) * (factor - 1)) for c in rgb)


def _jitter(rgb: RGB, rng: random.Random, light: float) -> RGB:
    """A slightly different colour of the same name, under the light of the picture."""
    return tuple(max(0, min(255, round(c * light + rng.uniform(-9, 9)))) for c in rgb)


def _rotated(outline: np.ndarray, angle: np.ndarray | float) -> np.ndarray:
    """A polygon (K, 2) turned about the origin: (K, 2), or (n, K, 2) for angles (n, 1)."""
    x, y = outline.T
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([x * cos - y * sin, x * sin + y * cos], -1)


def paint_flower(
    image: Image.Image, flower: Flower, box: Box, rng: random.Random, stem=False, wilted=False
) -> None:
    """Paint the petals so that they touch all four sides of `box` (pixels of `image`), in place."""
    draw = ImageDraw.Draw(image)
    turn = rng.uniform(0, 2 * math.pi)
    light = rng.uniform(0.93, 1.04)
    rgb = _jitter(PETAL_RGB[flower.colour], rng, light)
    if wilted:  # browner and duller, yet still of its colour
        rgb = tuple(round(0.7 * c + 0.3 * b) for c, b in zip(rgb, WILT_RGB, strict=True))
    centre_rgb = _jitter(CENTRE_RGB[flower.centre], rng, light)
    angles = turn + 2 * np.pi * np.arange(flower.petals) / flower.petals
    outline = _petal_outline(flower.shape, flower.petals)
    petals = _rotated(outline, angles[:, None])  # (petals, K, 2)
    low, high = petals.min((0, 1)), petals.max((0, 1))
    box_sides = np.array([box[2] - box[0], box[3] - box[1]])
    scale = (box_sides - 1) / (high - low)  # -1: the last pixel is inside
    x, y = origin = np.array(box[:2]) - low * scale
    radius = float(min(scale))
    if stem:
        _paint_stem(draw, x, y, radius, image.size, rng)
    edge = max(2, round(radius * 0.035))
    for petal in petals * scale + origin:
        points = petal.ravel().tolist()
        draw.polygon(points, fill=rgb, outline=_shade(rgb, 0.62), width=edge)
        if flower.shape != "thin":  # a lighter blade and a darker vein make the petal a petal
            middle = petal.mean(0)
            blade = (middle + (petal - middle) * 0.55).ravel().tolist()
            draw.polygon(blade, fill=_shade(rgb, 1.16))
            if flower.shape == "heart":
                continue  # a vein down to the notch would split the petal in two
            vein = (*(origin + (middle - origin) * 0.5), *(origin + (middle - origin) * 1.2))
            draw.line(vein, fill=_shade(rgb, 0.8), width=max(1, edge // 2))
    r = radius * 0.21
    disc = (x - r, y - r, x + r, y + r)
    draw.ellipse(disc, fill=centre_rgb, outline=_shade(centre_rgb, 0.6), width=edge)


def _paint_stem(draw, x, y, radius, image_size, rng) -> None:
    """A curved stem from the flower's centre to the lower edge, with one leaf."""
    green = _jitter((64, 112, 44), rng, 1.0)
    foot = x + rng.uniform(-0.5, 0.5) * radius
    t = np.linspace(0, 1, 9)
    points = np.stack([x + (foot - x) * t**2, y + (image_size[1] - y) * t], 1)  # (9, 2)
    draw.line(points.ravel().tolist(), fill=green, width=round(radius * 0.1))
    angle = rng.choice((-0.4, -2.7))  # up to the right or to the left
    _paint_leaf(draw, points[7], angle, 0.8 * radius, green, _shade(green, 1.12), edge=2)


def _paint_leaf(draw, foot, angle, length, green, fill, edge) -> None:
    leaf = foot + _rotated(_petal_outline("pointed", 8) * length, angle)  # (K, 2)
    draw.polygon(leaf.ravel().tolist(), fill=fill, outline=_shade(green, 0.7), width=edge)


def background(kind: str, seed: int, size: int) -> Image.Image:
    """A vertical gradient with soft patches and fine grain, RGB, `size` x `size`."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    top, bottom = np.array(BACKGROUND_RGB[kind], dtype=np.float32)
    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    patches = Image.fromarray(rng.normal(0, 7, (7, 7)).astype(np.float32))
    patches = np.asarray(patches.resize((size, size), Image.Resampling.BICUBIC))
    grain = rng.standard_normal((size, size), dtype=np.float32) * 3
    pixels = top + (bottom - top) * ramp + (patches + grain)[:, :, None]  # (size, size, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def on_background(layer: Image.Image, kind: str, seed: int, size: int) -> Image.Image:
    """The painted layer, reduced to `size` x `size`, on a background."""
    layer = layer.resize((size, size), Image.Resampling.LANCZOS)
    picture = background(kind, seed, size)
    picture.paste(layer, (0, 0), layer)
    return picture


def draw_flower(flower: Flower, seed: int, size: int = PORTRAIT_SIZE) -> Image.Image:
    """A portrait of one flower, RGB, `size` x `size`; its width is 70 to 95 % of the picture."""
    rng = random.Random(seed)
    big = size * SUPERSAMPLE
    width = big * rng.uniform(0.70, 0.95)
    height = width * rng.uniform(0.93, 1.0)  # seen slightly from the side
    x0, y0 = rng.uniform(0, big - width), rng.uniform(0, big - height)
    layer = Image.new("RGBA", (big, big))
    paint_flower(layer, flower, (x0, y0, x0 + width, y0 + height), rng, stem=True)
    return on_background(layer, rng.choice(tuple(BACKGROUND_RGB)), seed, size)


def outdoors(picture: Image.Image, seed: int) -> Image.Image:
    """The same picture as a cheap camera takes it: blur, light, haze and grain.

    The base was pretrained on clean ones, so perception here is good but not perfect.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, 1], dtype=np.uint64)))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.55)))
    pixels = np.asarray(picture, dtype=np.float32)  # (height, width, 3)
    tint = rng.uniform(0.88, 1.05, 3) * rng.uniform(0.8, 1.05)  # warmth and dusk
    haze, sky = rng.uniform(0, 0.19), rng.uniform(90, 200)
    pixels = pixels * tint * (1 - haze) + sky * haze
    pixels = pixels + rng.normal(0, rng.uniform(2, 6.7), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_scene(scene: Scene, seed: int, ailing: Mapping[int, str] = NO_CAUSES) -> Image.Image:
    """Flowers seen from above, RGB, 96x96.

    A flower's rotation and tint depend on (seed, its centre) alone, so a changed scene drawn with
    the same seed differs only in the changed flowers. `ailing` maps places in the scene (0, 1, ...)
    to what makes the flower there wilt, one of `world.CAUSES`.
    """
    layer = Image.new("RGBA", (SCENE_SIZE * SUPERSAMPLE, SCENE_SIZE * SUPERSAMPLE))
    draw = ImageDraw.Draw(layer)
    boxes = [tuple(SUPERSAMPLE * pixel for pixel in placed.corners) for placed in scene]
    for place, cause in ailing.items():
        if cause == "drought":
            _paint_dry_soil(draw, boxes[place], random.Random(f"{seed}-dry-{place}"))
    for place, (placed, box) in enumerate(zip(scene, boxes, strict=True)):
        x, y = placed.middle
        rng = random.Random(seed << 16 | x << 8 | y)
        paint_flower(layer, placed.flower, box, rng, wilted=place in ailing)
    for place, cause in ailing.items():
        if cause == "snail":
            _paint_snail(draw, boxes[place])
        elif cause == "shade":
            shadow = Image.new("RGBA", layer.size)
            ImageDraw.Draw(shadow).ellipse(_grown(boxes[place], 4), fill=(8, 10, 30, 100))
            layer.alpha_composite(shadow)
    return on_background(layer, random.Random(seed).choice(("grass", "soil")), seed, SCENE_SIZE)


def _grown(box, pixels):
    """A box of the painted layer that reaches so many pixels of the picture further."""
    reach = pixels * SUPERSAMPLE
    return box[0] - reach, box[1] - reach, box[2] + reach, box[3] + reach


def _paint_dry_soil(draw, box, rng) -> None:
    """A pale, cracked patch of soil that reaches a little beyond the flower's box."""
    x0, y0, x1, y1 = _grown(box, 3)
    draw.ellipse((x0, y0, x1, y1), fill=(226, 202, 154))
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    for k in range(9):
        angle = 2 * math.pi * (k + rng.uniform(-0.3, 0.3)) / 9
        end = (x + (x1 - x) * 0.97 * math.cos(angle), y + (y1 - y) * 0.97 * math.sin(angle))
        draw.line((x, y, *end), fill=(128, 98, 62), width=round(0.8 * SUPERSAMPLE))


def _paint_snail(draw, box) -> None:
    """A snail on the lower right corner of the flower's box."""
    dark = (90, 66, 40)
    r = 4.5 * SUPERSAMPLE
    x, y = box[2] - 0.8 * r, box[3] - 0.9 * r
    foot = (x - 2.0 * r, y + 0.5 * r, x + r, y + 1.05 * r)
    draw.ellipse(foot, fill=(214, 190, 150), outline=dark, width=round(0.5 * SUPERSAMPLE))
    for k, rgb in enumerate(((150, 84, 30), (222, 170, 96)) * 2):
        s = r * (1 - 0.26 * k)
        draw.ellipse((x - s, y - s, x + s, y + s), fill=rgb)
    for k in (0, 1):  # feelers
        tip = (x - (2.2 - 0.5 * k) * r, y - 0.2 * r)
        draw.line((x - 1.7 * r, y + 0.7 * r, *tip), fill=dark, width=round(0.6 * SUPERSAMPLE))


def draw_stage(flower: Flower, stage: str, seed: int) -> Image.Image:
    """A plant at one of `world.STAGES`, seen from the side, RGB, 64x64.

    Bud and bloom have the flower's colour; the seed head of every plant is brown.
    """
    rng = random.Random(f"{seed}-{stage}")
    big = PORTRAIT_SIZE * SUPERSAMPLE
    layer = Image.new("RGBA", (big, big))
    draw = ImageDraw.Draw(layer)
    height = {"sprout": 0.26, "bud": 0.5, "bloom": 0.5, "seeds": 0.56}[stage]
    x = big * rng.uniform(0.4, 0.6)
    top = big * (1 - height * rng.uniform(0.9, 1.1))
    green = _jitter((64, 122, 44), rng, 1.0)
    draw.line((x, big, x, top), fill=green, width=round(big * 0.03))
    length, foot = (0.2 * big, top) if stage == "sprout" else (0.24 * big, 0.86 * big)
    for angle in (math.radians(-145), math.radians(-35)):  # two leaves
        _paint_leaf(draw, (x, foot), angle, length, green, _shade(green, 1.1), edge=3)
    if stage == "bud":
        rgb = _jitter(PETAL_RGB[flower.colour], rng, 1.0)
        w, h = big * 0.085, big * 0.15
        bud = (x - w, top - h, x + w, top + h)
        draw.ellipse(bud, fill=rgb, outline=_shade(rgb, 0.6), width=4)
        cup = [(x - w, top), (x, top - 0.4 * h), (x + w, top), (x, top + 1.1 * h)]
        draw.polygon(cup, fill=green)
    elif stage == "bloom":
        reach = big * 0.27
        top = max(top, reach)
        paint_flower(layer, flower, (x - reach, top - reach, x + reach, top + reach), rng)
    elif stage == "seeds":
        brown = _jitter((104, 76, 40), rng, 1.0)
        r = big * 0.12
        for k in range(12):
            angle = 2 * math.pi * k / 12
            tip = (x + 1.7 * r * math.cos(angle), top + 1.7 * r * math.sin(angle))
            draw.line((x, top, *tip), fill=(226, 216, 190), width=4)
        draw.ellipse((x - r, top - r, x + r, top + r), fill=brown, outline=_shade(brown, 0.6))
    return on_background(layer, rng.choice(tuple(BACKGROUND_RGB)), seed, PORTRAIT_SIZE)
