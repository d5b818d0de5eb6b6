"""Pictures to patches: a file or a PIL image becomes the rows of numbers the vision tower reads.

`load_image` decides which pictures are accepted; `patchify` is bit-equal to transformers'
`Qwen2VLImageProcessorPil` (whose `AutoProcessor` needs torchvision just to be constructed).

Patch order: the vision tower merges each merge x merge block of patches into one image token, so
the patches of a block are neighbours in memory. Rows run over blocks (top to bottom, left to right)
and then inside the block; columns run over channel, frame, pixel row, pixel column.

Departure: transparency is composited on white, as in qwen-vl-utils; the reference processor shows
whatever colour hides under transparent pixels. Source: Qwen2-VL, arXiv:2409.12191, section 2.1.
"""

import io
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from runtime.errors import InputError

MAX_ASPECT_RATIO = 200
MOST_MIN_PIXELS = 2**24  # of a preprocessor_config.json
MIN_STD = 1e-3  # below, normalised pixels are no numbers for float32 and bfloat16
MAX_PIXELS = 89_000_000  # of a file: Pillow itself warns above; a scan of A3 at 600 dpi has 70
RESCALE_FACTOR = 1 / 255
# An allow-list: some of Pillow's other plugins start programs (EPS) or are hardly ever used.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
CONVERT = "convert it to PNG or JPEG"
MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LA", "PA", "RGBA")  # and I;16
# What turns a picture with EXIF orientation 2, 3, ... 8 upright; 1 is upright already.
_FLIPS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
UPRIGHT = {2 + i: Image.Transpose[name] for i, name in enumerate(_FLIPS.split())}


def load_image(
    source: Path | str | bytes | Image.Image, max_image_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Read one picture, a file or its content, as an upright, opaque, 8-bit RGB image.

    Boxes refer to the returned image: EXIF orientation is applied, so width and height may be
    swapped against the stored file; invalid EXIF bytes leave it unrotated. Transparency becomes
    white, 16-bit gray is scaled to 8 bits, an animation gives its first frame (an opened PIL image
    its current one). A PIL image passes the same checks as a file and is not modified.

    Raises:
        InputError: the file is missing, damaged, cut off, too narrow, of an unsupported format or
            mode, or its header announces more than `max_image_pixels` (checked before decoding).
    """
    if isinstance(source, Image.Image):
        name = f"PIL image ({source.mode}, {source.width}x{source.height})"
        return _to_rgb(source, name, max_image_pixels)
    if isinstance(source, bytes):
        name, opened = f"picture of {len(source)} bytes", io.BytesIO(source)
    else:
        name = repr(str(source)[:200])  # repr: no control characters reach the console or the log
        opened = _open_regular_file(source, name, max_image_pixels)
    with opened as file:
        with _decoding(name, file):
            # Checksums first (PNG). verify() uses its image up, so the file is opened twice.
            Image.open(file, formats=FORMATS).verify()
            image = Image.open(file, formats=FORMATS)
        return _to_rgb(image, name, max_image_pixels)


def _open_regular_file(source: Path | str, name: str, max_image_pixels: int) -> BinaryIO:
    scheme, colon, rest = str(source).partition(":")
    if colon and (rest.startswith("//") or scheme.lower() in ("data", "http", "https", "file")):
        raise InputError(f"{name}: is a URL, but pictures are read from local files; download it")
    try:
        status = Path(source).stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO or reading a device may never return
            raise InputError(f"{name}: is not a regular file; give the path of a picture")
        max_bytes = 8 * max_image_pixels + 2**24  # uncompressed 16-bit RGBA and 16 MiB of metadata
        if not 0 < status.st_size <= max_bytes:
            why = "is empty" if status.st_size == 0 else f"is larger than {max_bytes} bytes"
            raise InputError(f"{name}: {why}, so it is no usable picture; replace the file")
        return Path(source).open("rb")
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: cannot open the picture ({why}); check the path") from error


@contextmanager
def _decoding(name: str, file: BinaryIO | None = None) -> Iterator[None]:
    """Turn whatever Pillow raises on damaged bytes into one InputError that contains the cause."""
    try:
        yield
    except Exception as error:  # OSError, SyntaxError, struct.error, KeyError, ... by plugin
        why = f"cannot be decoded ({type(error).__name__}: {str(error)[:200]!r}); replace it"
        if file is not None and isinstance(error, UnidentifiedImageError):
            file.seek(0)
            why = _foreign_format(file.read(1024))
        raise InputError(f"{name}: {why} or take it out of the data") from error


def _foreign_format(head: bytes) -> str:
    """Say what a file that is none of FORMATS looks like, from its first bytes."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()  # less a byte order mark
    if text.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not a picture: run git lfs pull"
    if text.startswith(b"%pdf"):
        return f"is a PDF document, not a picture; {CONVERT}"
    if text.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, not a picture (often a failed download): get it anew"
    if text.startswith(b"<") and b"<svg" in text:
        return f"is SVG, a vector format that Pillow does not decode; {CONVERT}"
    if head[4:8] == b"ftyp":
        return f"is HEIC/HEIF (or a video), which Pillow does not decode; {CONVERT}"
    return f"is damaged or none of {', '.join(FORMATS)}; {CONVERT}"


def _to_rgb(image: Image.Image, name: str, max_image_pixels: int) -> Image.Image:
    width, height = image.size
    if not 0 < width * height <= max_image_pixels:
        fix = f"allowed are 1 to {max_image_pixels}; downscale the picture"
        raise InputError(f"{name}: {width}x{height} = {width * height} pixels, {fix}")
    _check_aspect_ratio(height, width, name)
    with _decoding(name):
        image.load()
    orientation = None  # read after load(), as PNG may hold its EXIF behind the pixels
    with suppress(Exception):  # garbage in the EXIF bytes: the pixels are sound, left as stored
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    if image.mode.startswith("I;16"):
        rgb = _gray16_to_gray8(image).convert("RGB")
    elif image.mode not in MODES:
        why = "(32-bit, float or a rare colour space) has no one reading in 8 bits"
        raise InputError(f"{name}: pixel mode {image.mode} {why}; save it as 8-bit RGB")
    else:
        with _decoding(name):
            if image.has_transparency_data:
                rgba = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            rgb = image.convert("RGB")
    if orientation in UPRIGHT:
        rgb = rgb.transpose(UPRIGHT[orientation])
    rgb.info.clear()  # else the EXIF block would rotate the picture again at the next load_image
    return rgb


def _gray16_to_gray8(image: Image.Image) -> Image.Image:
    """Map 0..65535 onto 0..255, rounding to nearest; Pillow's own conversions cut instead."""
    gray16 = np.asarray(image)  # (H, W) uint16, either byte order
    gray8 = ((gray16.astype(np.uint32) + 128) // 257).astype(np.uint8)  # (H, W); 65535 = 255 * 257
    if "transparency" in image.info:  # the one gray value that this PNG declares transparent
        gray8[gray16 == image.info["transparency"]] = 255
    return Image.fromarray(gray8)


def _check_aspect_ratio(height: int, width: int, name: str) -> None:
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        shape = f"{width}x{height} has aspect ratio {ratio:.1f}"
        raise InputError(f"{name}: {shape}, more than {MAX_ASPECT_RATIO}; crop the picture")


@dataclass(frozen=True)
class ImageConfig:
    """The image preprocessing of a checkpoint; names as in preprocessor_config.json."""

    patch_size: int  # p, side of a patch in pixels
    temporal_patch_size: int  # t, frames per patch; a still picture is repeated t times
    merge_size: int  # patches per side of an image token
    min_pixels: int  # area below which a picture is enlarged
    max_pixels: int  # area above which it is shrunk
    image_mean: tuple[float, ...]  # (3,) of RGB in 0..1
    image_std: tuple[float, ...]  # (3,)

    @classmethod
    def from_dict(cls, d: dict, source: str = "preprocessor_config.json") -> "ImageConfig":
        """Read a parsed preprocessor_config.json; `source` names the file in messages.

        The areas are `min_pixels`/`max_pixels` (Qwen2-VL, Qwen2.5-VL) or `size: {shortest_edge,
        longest_edge}` (Qwen3-VL), whose keys may be called as the former. As in transformers the
        former win, and null means absent.
        InputError: a key is missing, invalid, or asks for something not implemented here.
        """
        d = {key: value for key, value in d.items() if value is not None}
        size = d["size"] if isinstance(d.get("size"), dict) else {}
        low, high = size.get("shortest_edge"), size.get("longest_edge")
        d = {
            "min_pixels": low or size.get("min_pixels"),
            "max_pixels": high or size.get("max_pixels"),
        } | d
        sizes = ("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels")
        for key in sizes:
            if type(d.get(key)) is not int or d[key] < 1:  # type(): True is an int but no size
                raise InputError(f"{source}: '{key}' must be an integer >= 1, got {d.get(key)!r}")
        if d["min_pixels"] > MOST_MIN_PIXELS:  # every picture would be enlarged to that
            what = f"'min_pixels' is {d['min_pixels']}, must be at most {MOST_MIN_PIXELS}"
            raise InputError(f"{source}: {what}")
        if d["min_pixels"] > d["max_pixels"]:
            raise InputError(f"{source}: 'min_pixels' is larger than 'max_pixels'; swap them")
        for key in ("image_mean", "image_std"):
            rgb = d.get(key)
            is_rgb = isinstance(rgb, (list, tuple)) and len(rgb) == 3
            is_rgb = is_rgb and all(type(x) in (int, float) and 0 <= x <= 1 for x in rgb)
            if not is_rgb or (key == "image_std" and min(rgb) < MIN_STD):
                raise InputError(
                    f"{source}: '{key}' must be three numbers from 0 to 1 (R, G, B), got {rgb!r}"
                )
        fixed = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3}
        for key, only in (fixed | {"rescale_factor": RESCALE_FACTOR}).items():
            if d.get(key, only) != only:
                raise InputError(f"{source}: '{key}' = {d[key]!r} is not supported, only {only}")
        return cls(*(d[key] for key in sizes), tuple(d["image_mean"]), tuple(d["image_std"]))


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Return (height, width) as multiples of `factor`, about the same shape, area in the limits.

    Round both sides to the nearest multiple (half to even, as in the reference); if the area misses
    a limit, scale the original sides onto it and round inwards. The upper limit gives way where a
    side would fall below one factor, or where both limits lie too close together.
    """
    _check_aspect_ratio(height, width, "picture")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:  # also where a side was rounded to zero
        enlarge = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * enlarge / factor) * factor
        new_width = math.ceil(width * enlarge / factor) * factor
    return new_height, new_width


def patchify(image: Image.Image, cfg: ImageConfig) -> tuple[Tensor, tuple[int, int, int]]:
    """Resize an RGB picture and cut it into normalised patches, in the order described above.

    Returns:
        pixels: (M, 3 * t * p * p) float32 with M = h * w patches.
        grid: (1, h, w) counted in patches; a still picture is one temporal step.
    """
    if image.mode != "RGB":
        raise ValueError(f"patchify expects an RGB image from load_image, got mode {image.mode}")
    p, t, m = cfg.patch_size, cfg.temporal_patch_size, cfg.merge_size
    height, width = smart_resize(*image.size[::-1], p * m, cfg.min_pixels, cfg.max_pixels)
    h, w = height // p, width // p
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))  # (H, W, 3) uint8
    patches = resized.reshape(h // m, m, p, w // m, m, p, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    patches = patches.reshape(h * w, 3, p, p)  # (M, 3, p, p) uint8
    # A byte has 256 values, so rescaling and normalising is a table look-up: the reference's
    # arithmetic and precisions (hence bit-equal), on 768 numbers instead of on every pixel.
    value = (np.arange(256, dtype=np.float64) * RESCALE_FACTOR).astype(np.float32)  # (256,)
    pixels = np.empty((h * w, 3, t, p, p), dtype=np.float32)
    for c in range(3):
        table = (value - np.float32(cfg.image_mean[c])) / np.float32(cfg.image_std[c])  # (256,)
        pixels[:, c] = table[patches[:, c]][:, None]  # (M, 1, p, p), repeated over the t frames
    return torch.from_numpy(pixels.reshape(h * w, 3 * t * p * p)), (1, h, w)


def num_image_tokens(grid: tuple[int, int, int], merge_size: int) -> int:
    """Q, the image tokens of a (t, h, w) patch grid after merging blocks of merge_size squared."""
    t, h, w = grid
    return t * h * w // merge_size**2
