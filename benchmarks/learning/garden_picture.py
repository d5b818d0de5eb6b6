"""The pictures of the README: `assets/garden.png` (four genera with names) and `assets/flower.png`.

python benchmarks/learning/garden_picture.py
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from data.garden.drawing import draw_flower, outdoors  # noqa: E402
from data.garden.world import (  # noqa: E402
    OOD_SPECIES,
    SPECIES,
    SPLIT_SEED,
    render_seed,
)

SIDE, CAPTION, GENERA = 128, 20, ("Solara", "Amantha", "Celestra", "Lunessa")
SUBJECT = "Celestra vernalis"


def portrait(species, index: int, size: int) -> Image.Image:
    """A rendering of the test split that no run uses (they count from 0)."""
    seed = render_seed("test", SPLIT_SEED, SPECIES.index(species), index)
    return outdoors(draw_flower(species.flower, seed, size), seed)


def main() -> None:
    rows = [[s for s in SPECIES if s.genus == genus] for genus in GENERA]
    sheet = Image.new("RGB", (SIDE * 4, (SIDE + CAPTION) * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for y, row in enumerate(rows):
        for x, species in enumerate(row):
            sheet.paste(portrait(species, 9000, SIDE), (x * SIDE, y * (SIDE + CAPTION)))
            name = species.name + (" *" if species in OOD_SPECIES else "")
            at = (x * SIDE + SIDE // 2, y * (SIDE + CAPTION) + SIDE + CAPTION // 2)
            draw.text(at, name, fill="black", font=font, anchor="mm")
    sheet.quantize(128).save(ROOT / "assets" / "garden.png", optimize=True)
    chosen = next(species for species in SPECIES if species.name == SUBJECT)
    portrait(chosen, 9000, 64).save(ROOT / "assets" / "flower.png")


if __name__ == "__main__":
    main()
