"""The pictures of the README: `assets/garden.png` (four genera with names) and `assets/flower.png`.

python -m benchmarks.learning.garden_picture
"""

from PIL import Image, ImageDraw, ImageFont

from benchmarks.timing import ROOT
from data.garden.drawing import draw_flower, outdoors
from data.garden.world import OOD_SPECIES, SPECIES, SPLIT_SEED, Species, render_seed

SIDE, CAPTION, GENERA = 128, 20, ("Solara", "Amantha", "Celestra", "Lunessa")
SUBJECT = "Celestra vernalis"
UNUSED = 9000  # an index far beyond those of the runs, which count from 0


def _portrait(species: Species, size: int) -> Image.Image:
    seed = render_seed("test", SPLIT_SEED, SPECIES.index(species), UNUSED)
    return outdoors(draw_flower(species.flower, seed, size), seed)


def main() -> None:
    rows = [[s for s in SPECIES if s.genus == genus] for genus in GENERA]
    sheet = Image.new("RGB", (SIDE * 4, (SIDE + CAPTION) * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for y, row in enumerate(rows):
        for x, species in enumerate(row):
            sheet.paste(_portrait(species, SIDE), (x * SIDE, y * (SIDE + CAPTION)))
            name = species.name + (" *" if species in OOD_SPECIES else "")
            at = (x * SIDE + SIDE // 2, y * (SIDE + CAPTION) + SIDE + CAPTION // 2)
            draw.text(at, name, fill="black", font=font, anchor="mm")
    sheet.quantize(128).save(ROOT / "assets" / "garden.png", optimize=True)
    subject = next(species for species in SPECIES if species.name == SUBJECT)
    _portrait(subject, 64).save(ROOT / "assets" / "flower.png")


if __name__ == "__main__":
    main()
