"""Bad pictures and bad records, through the readers that a run uses. Numbers are of the campaign.

One picture that cannot be used costs its own record, whatever is wrong with it, and is listed with
the reason; a picture that goes away while a run is under way costs no finished step.
Run: pytest tests/robustness/test_inputs.py
"""

import json
import time
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

import train_grpo
from data.examples import Example
from data.files import SkipLog
from data.labelled import load_labelled, readable
from data.rows import load_records
from runtime import console
from runtime.errors import InputError
from tests.data.test_labelled import class_folders, labelled
from tests.helpers import folder_of_classes, step_rows
from tests.model.test_image import encoded, noise, png_bytes
from training.run import TrainingRun

JPEG = encoded(noise(64, 48), "JPEG")


def png_of_size(width: int, height: int) -> bytes:
    """A small file whose header announces this many black pixels."""
    return png_bytes(width, height, 1, 0, b"\0" * 1000)


# name of the file, its content, the reason that has to be told
UNUSABLE = {
    "I4 float": ("float.tif", encoded(Image.new("F", (9, 9)), "TIFF"), "pixel mode F"),
    "I4 32-bit": ("deep.tif", encoded(Image.new("I", (9, 9)), "TIFF"), "pixel mode I "),
    "I7 half": ("half.jpg", JPEG[: len(JPEG) // 2], "cannot be decoded"),
    "I7 no end": ("no_end.jpg", JPEG[:-2], "cannot be decoded"),
    "I8 empty": ("empty.jpg", b"", "is empty"),
    "I9 page": ("page.jpg", b"<!DOCTYPE html><html>404</html>", "is an HTML page"),
    "I10 144 MPx": ("bomb.png", png_of_size(12_000, 12_000), "12000x12000 = 144000000 pixels"),
    "I11 201:1": ("thin.png", encoded(noise(201, 1), "PNG"), "aspect ratio 201.0"),
    "I11 line": ("line.png", png_of_size(4_000_000, 1), "aspect ratio 4000000.0"),
    "I13 SVG": ("drawing.png", b"<svg width='1' height='1'></svg>", "is SVG"),
    "I13 HEIC": ("phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC"),
    "I13 PDF": ("scan.png", b"%PDF-1.7\n%abc", "is a PDF"),
}


@pytest.mark.case("I4", "I7", "I8", "I9", "I10", "I11", "I13")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("source", ["class folders", "rows"])
@pytest.mark.parametrize("name, content, reason", UNUSABLE.values(), ids=UNUSABLE)
def test_a_picture_that_cannot_be_used_costs_its_record_and_the_reason_is_told(
    tmp_path, capsys, source, name, content, reason
):
    root = class_folders(tmp_path, a=2, b=2)
    (root / "a" / name).write_bytes(content)
    start = time.process_time()
    if source == "rows":
        images = ["a/0.png", f"a/{name}", "b/0.png"]
        rows = [{"image": image, "problem": "?", "solution": image[0]} for image in images]
        (root / "rows.json").write_text(json.dumps(rows))
        kept = [record.images[0] for record in load_records(str(root / "rows.json"))[1]]
        assert kept == [root / "a/0.png", root / "b/0.png"]
    else:
        kept = [item.id for item in load_labelled(str(root))]
        assert kept == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert time.process_time() - start < 1
    printed = capsys.readouterr().out
    assert f"1 of {len(kept) + 1} records skipped" in printed
    assert name in printed and reason in printed


@pytest.mark.case("I5")
def test_i5_a_picture_in_a_mode_without_one_reading_costs_its_record_only():
    items, skips = labelled(a=2), SkipLog()
    odd = Example("odd", (Image.new("La", (9, 9)),), "?", "a")
    assert readable([items[0], odd, items[1]], skips) == items
    assert skips.counts == {"unreadable": 1} and "pixel mode La" in skips.first[0]


@pytest.mark.case("I6")
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_i6_a_picture_with_broken_exif_loses_its_rotation_and_no_record(tmp_path, capsys):
    root = class_folders(tmp_path, a=1, b=1)
    broken = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01"
    (root / "a" / "exif.jpg").write_bytes(encoded(noise(40, 30), "JPEG", exif=broken))
    assert len(load_labelled(str(root))) == 3
    assert "skipped" not in capsys.readouterr().out


@pytest.mark.case("I10")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_i10_a_sound_file_of_18_kb_and_144_megapixels_is_refused_at_once(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_bytes(12_000, 12_000, 1, 0, bytes(1 + 12_000 // 8) * 12_000))
    assert path.stat().st_size < 20_000
    skips, start = SkipLog(), time.process_time()
    assert readable([Example("bomb", (path,), "?", "a")], skips) == []
    assert time.process_time() - start < 0.1 and "downscale the picture" in skips.first[0]


@pytest.mark.case("I18")
@pytest.mark.parametrize("form, other", [("NFC", "NFD"), ("NFD", "NFC")])
def test_i18_an_image_named_in_another_unicode_form_is_refused_with_a_hint(tmp_path, form, other):
    name = "rosé.png"
    noise(9, 9).save(tmp_path / unicodedata.normalize(form, name))
    asked = unicodedata.normalize(other, name)
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"image": asked, "problem": "?", "solution": "rose"})
    )
    with pytest.raises(InputError, match="1 images missing.*rows.jsonl:1.*did you mean 'ros"):
        load_records(str(tmp_path / "rows.jsonl"))


def short_run(tiny_dir, data: Path, out: Path) -> list[str]:
    line = f"--model {tiny_dir} --device cpu --data {data} --output_dir {out} --max_steps 4"
    line += " --prompts_per_step 2 --max_completion_length 4 --report_prompts 0 --eval_steps 9"
    return [*line.split(), "--held_out_per_class", "1"]


@pytest.mark.case("I19")
@pytest.mark.parametrize(
    "damage, split, done",
    # Training reads a step ahead: the third may have had its pictures already.
    [("deleted", "train", (2, 3)), ("replaced", "train", (2, 3)), ("deleted", "held_out", (4,))],
)
def test_i19_a_picture_lost_during_a_run_stops_it_by_name_and_costs_no_finished_step(
    tiny_dir, tmp_path, monkeypatch, capsys, damage, split, done
):
    data, lost = folder_of_classes(tmp_path / "photos"), {}
    train_grpo.main(short_run(tiny_dir, data, tmp_path / "a"))
    original = TrainingRun.end_step

    def lose(self, *args):
        original(self, *args)
        if self.done == 2:
            examples = {"train": self.task.train} | self.task.splits
            path = Path(examples[split][0].images[0])
            lost[path] = path.read_bytes()
            path.unlink()
            if damage == "replaced":
                path.write_bytes(b"<html>gone</html>")

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(TrainingRun, "end_step", lose)
        console.run(lambda: train_grpo.main(short_run(tiny_dir, data, tmp_path / "b")))
    ((path, content),) = lost.items()
    out, err = capsys.readouterr()
    error = err.strip().splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ") and path.name in error
    assert f"--resume_from_checkpoint {tmp_path / 'b'}" in out
    steps = [row["step"] for row in step_rows(tmp_path / "b")]
    assert len(steps) in done and steps == [*range(1, len(steps) + 1)]
    path.write_bytes(content)  # the picture is back: the run continues as if nothing had happened
    train_grpo.main(["--resume_from_checkpoint", str(tmp_path / "b")])
    ends = [tmp_path / name / "step_4" / "hf" / "model.safetensors" for name in "ab"]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    logs = [(tmp_path / name / "completions.jsonl").read_bytes() for name in "ab"]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("name", ["a/" * 3000 + "x.png", "x" * 5000, "x" * 300 + ".png"])
def test_a_name_that_no_file_can_have_is_one_line(name, tmp_path):
    path = tmp_path / "set.jsonl"
    row = {"image": name, "problem": "How many?", "solution": "1"}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="is no file name|missing or no regular"):
        load_records(str(path))
