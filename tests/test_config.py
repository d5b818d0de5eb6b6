"""What config.py guarantees: every flag means what its field says, and nothing is silently wrong.

A value that cannot work ends the script with exit code 2 and one `error:` line that names the flag;
so does a misspelt flag, with the nearest right one. What `save` writes, `load` reads back equal. No
flag is dead: the scripts' syntax trees show every field being read.
Run: pytest tests/test_config.py
"""

import ast
import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

import config
from config import TaskConfig
from evaluate import EvalConfig
from runtime import console
from runtime.errors import InputError
from sample import SampleConfig
from train_grpo import GRPOConfig
from train_ppo import PPOConfig
from train_sft import SFTConfig
from train_verifier import VerifierConfig

ROOT = Path(config.__file__).parent
KINDS = (GRPOConfig, PPOConfig, SFTConfig, VerifierConfig, EvalConfig, SampleConfig)
FIELDS = [pytest.param(kind, f, id=f"{kind.__name__}.{f.name}") for kind in KINDS
          for f in dataclasses.fields(kind)]  # fmt: skip
UNUSED = {(VerifierConfig, "report_to")}  # refused by the script, with the reason
LITERALS = [p for p in FIELDS if get_origin(p.values[1].type) is Literal
            and (p.values[0], p.values[1].name) not in UNUSED]  # fmt: skip


def parse(*argv: str, kind=GRPOConfig):
    return config.parse(kind, list(argv), "a description")


def refusal(capsys, *argv: str, kind=GRPOConfig) -> str:
    """Run a script that only reads its flags; return its one line on stderr, less the newline."""
    with pytest.raises(SystemExit) as stopped:
        console.run(partial(parse, *argv, kind=kind))
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    return err[:-1]


FOUR = {"num_generations": 4, "learning_rate": 1e-6}
READ = [  # flags, the fields that they set
    # Dashes and underscores are the same in names, and stay as they are in values.
    ("--num_generations 4 --learning_rate 1e-6", FOUR),
    ("--num-generations 4 --learning-rate 1e-6", FOUR),
    ("--num-generations=4 --learning_rate=1e-6", FOUR),
    ("--num_generations=4 --learning-rate=1e-6", FOUR),
    ("--data=my-photos --question well-known?", {"data": "my-photos", "question": "well-known?"}),
    # Every value has the type of its field.
    ("--output-dir a-b/c-d --model m", {"output_dir": Path("a-b/c-d"), "model": Path("m")}),
    ("--max_pixels 4096 --epsilon_high 0.28", {"max_pixels": 4096, "epsilon_high": 0.28}),
    ("--question none --epsilon_high None --max_pixels NONE --output_dir none", {}),
    # Switches: on by their name, off by no, and the last word counts.
    ("--no-freeze_vision", {"freeze_vision": False}),
    ("--no-freeze-vision", {"freeze_vision": False}),
    ("--no_freeze_vision", {"freeze_vision": False}),
    ("--shuffle_labels", {"shuffle_labels": True}),
    ("--shuffle-labels", {"shuffle_labels": True}),
    ("--shuffle-labels --no-shuffle-labels", {}),
    # The edge of what is possible.
    ("--shots=1 --num_generations=2 --epsilon=0.999", {"num_generations": 2, "epsilon": 0.999}),
    ("--beta=0 --save_steps=0 --format_weight=0", {"save_steps": 0, "format_weight": 0.0}),
    (f"--seed={2**63 - 1} --split_seed={2**24 - 1}", {"seed": 2**63 - 1, "split_seed": 2**24 - 1}),
]


@pytest.mark.parametrize("line, fields", READ)
def test_flags_set_their_fields(line, fields):
    assert parse(*line.split()) == GRPOConfig(**fields)


def test_a_flag_that_is_given_twice_is_said(capsys):
    assert parse("--max-steps", "3", "--beta=0", "--max_steps=4").max_steps == 4
    assert capsys.readouterr().err == "warning: --max_steps is given 2 times: the last counts\n"
    assert parse("--shuffle-labels", "--no-shuffle-labels") == GRPOConfig()
    assert "--shuffle_labels is given 2 times" in capsys.readouterr().err


COMPANIONS = {  # choice -> flags without which it would change nothing
    "reinforce": "--scale_rewards none",
    "cispo": "--num_iterations 2 --epsilon_high 5",
    "sapo": "--num_iterations 2",
    "sequence": "--num_iterations 2 --epsilon 0.05",
    **{choice: "--verifier v --votes 2 --temperature 1" for choice in ("best", "weighted", "beam")},
    "preference": "--ratings r.jsonl",
}


@pytest.mark.case("I75")
@pytest.mark.parametrize("kind, field", LITERALS)
def test_a_literal_takes_its_choices_and_refuses_others_by_listing_them(kind, field, capsys):
    for choice in get_args(field.type):
        companions = COMPANIONS.get(choice, "")
        companions += " --cot" * (kind is SFTConfig)  # reasoning is learned only when asked for
        companions += " --dense 1" * (field.name == "dense_schedule")  # or nothing decays
        cfg = parse(f"--{field.name}", choice, *companions.split(), kind=kind)
        assert getattr(cfg, field.name) == choice
    message = refusal(capsys, f"--{field.name}", "nonsense", kind=kind)
    assert f"--{field.name}" in message and all(c in message for c in get_args(field.type))


@pytest.mark.case("I70")
@pytest.mark.parametrize(
    "word, message",
    [
        ("--shot", "--shot: no such flag; did you mean --shots?"),
        ("--num-generation=4", "--num_generation=4: no such flag; did you mean --num_generations?"),
        ("--lerning_rate", "--lerning_rate: no such flag; did you mean --learning_rate?"),
        ("--no-freeze-vison", "--no-freeze_vison: no such flag; did you mean --no-freeze_vision?"),
        # no abbreviations: a new flag would change their meaning
        ("--max_step", "--max_step: no such flag; did you mean --max_steps?"),
        ("--zzzzqqqq", "--zzzzqqqq: no such flag; --help lists the flags"),
        ("-x", "-x: no such flag; --help lists the flags"),
        ("stray", "stray: no such flag; --help lists the flags"),
    ],
)
def test_an_unknown_flag_is_one_line_with_the_nearest_flag(word, message, capsys):
    assert refusal(capsys, word) == f"error: {message}"


IMPOSSIBLE = {  # beside -1, and nan and inf where a float is wanted
    "shots": ["0", "x", "1.5", "", "nan", "none"],
    "num_generations": ["1", "0"],
    "question": ["", "<image>Which?"],
    "learning_rate": ["0", "1e999", "fast"],
    "temperature": ["0"],
    "correct_weight": ["0 --format_weight=0"],  # nothing could be earned
    "epsilon": ["1", "0", "1.5"],
    "epsilon_high": ["0"],
    "max_grad_norm": ["0"],
    "max_pixels": ["0", "many"],
    "eval_steps": ["0"],
    "seed": [str(2**63)],
    "split_seed": [str(2**24)],
    "freeze_vision": ["no"],  # a switch takes no value
}


@pytest.mark.case("I71")
@pytest.mark.parametrize("field", dataclasses.fields(GRPOConfig), ids=lambda f: f.name)
def test_an_impossible_value_is_one_line_that_names_the_flag(field, capsys):
    assert IMPOSSIBLE.keys() <= GRPOConfig.__dataclass_fields__.keys()
    inner, _ = config._inner_type(field.type)
    numbers = {int: ["-1"], float: ["-1", "nan", "inf"]}.get(inner, [])
    for value in numbers + IMPOSSIBLE.get(field.name, []):
        assert f"--{field.name}" in refusal(capsys, *f"--{field.name}={value}".split())


def test_the_command_of_a_run_makes_it_again():
    cfg = GRPOConfig(task="count", num_generations=4, freeze_vision=False, output_dir=Path("x"))
    words = config.command(cfg).split()
    assert words[:4] == ["python", "train_grpo.py", "--task", "count"]
    assert dataclasses.replace(cfg, output_dir=None) == parse(*words[2:])
    assert config.command(GRPOConfig(), processes=2) == (
        "torchrun --nproc_per_node=2 train_grpo.py --task cls"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_flags_give_the_defaults_and_help_prints_them(kind, capsys, monkeypatch):
    assert parse(kind=kind) == kind()
    monkeypatch.setenv("COLUMNS", "1000")  # no line breaks inside an entry
    with pytest.raises(SystemExit) as stopped:
        parse("--help", kind=kind)
    assert not stopped.value.code
    out = capsys.readouterr().out
    assert "a description" in out
    entries = " ".join(out.partition("options:")[2].split())
    for field in dataclasses.fields(kind):
        _, found, entry = entries.partition(f" --{field.name}{',' * (field.type is bool)} ")
        assert found, field.name
        entry = entry.partition(" --")[0]
        assert field.metadata["help"] in entry
        if field.default is not None:
            shown = config._show(field.default)
            assert entry.count(f"(default: {shown})") == 1


SAVED = [
    GRPOConfig(),
    GRPOConfig(
        output_dir=Path("runs") / "a b", epsilon_high=0.28, max_pixels=4096, question="Où ça?"
    ),
    GRPOConfig(freeze_vision=False, shuffle_labels=True, learning_rate=1e-6, seed=2**63 - 1),
    EvalConfig(),
    EvalConfig(output=Path("answers.jsonl"), temperature=0.7),
]


@pytest.mark.parametrize("cfg", SAVED)
def test_what_is_saved_is_loaded_back_equal(cfg, tmp_path):
    config.save(cfg, tmp_path / "config.json")
    loaded = config.load(type(cfg), tmp_path / "config.json")
    assert loaded == cfg
    assert [type(v) for v in vars(loaded).values()] == [type(v) for v in vars(cfg).values()]


def test_the_file_is_plain_json_with_every_field(tmp_path):
    config.save(GRPOConfig(model=Path("m"), question=None), tmp_path / "config.json")
    raw = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert list(raw) == ["script", *(field.name for field in dataclasses.fields(GRPOConfig))]
    assert raw["model"] == "m" and raw["question"] is None and raw["script"] == "train_grpo.py"
    with pytest.raises(InputError, match="not a run of train_sft.py, but of train_grpo.py"):
        config.load(SFTConfig, tmp_path / "config.json")
    task = config.load(TaskConfig, tmp_path / "config.json", strict=False)  # of any script
    assert task == TaskConfig(model=Path("m"))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"shots": 2', b"\xff\xfe", b"[]", b"3", b"null", b"[" * 100_000]
    + [b'{"shot": 2}', b'{"shots": "x"}', b'{"shots": 0}', b'{"shots": 1.5}', b'{"shots": null}']
    + [b'{"shots": true}', b'{"learning_rate": NaN}', b'{"shots": {}}', b'{"freeze_vision": "no"}']
    + [b'{"loss_type": "ppo"}', b'{"loss_type": []}'],
    ids=lambda content: repr(content[:24]),
)
def test_a_damaged_file_is_refused_by_name(content, tmp_path):
    path = tmp_path / "config.json"
    if content.startswith(b'{"') and content.endswith(b"}"):
        content = b'{"script": "train_grpo.py", ' + content[1:]
    path.write_bytes(content)
    with pytest.raises(InputError, match="config.json: (not a GRPOConfig|cannot be|must hold)"):
        config.load(GRPOConfig, path)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    for path in (tmp_path / "gone.json", tmp_path):
        with pytest.raises(InputError, match=f"is no run, it has no {path.name}"):
            config.load(GRPOConfig, path)


def names_read() -> set[str]:
    """Attributes of `cfg` or `run`, and names in getattr, that any file but config.py reads."""
    names = set()
    folders = ("", "data", "tasks", "training", "reporting", "reporting/page")
    for path in [p for f in folders for p in ROOT.glob(f"{f}/*.py" if f else "*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(("cfg", "run")):
                names.add(node.attr)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "flags.pop"):
                names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return names


def test_every_flag_is_read_somewhere():
    """A range check is no use of a value: those read `self` or a loop's name."""
    names = names_read()
    derived = {"save_steps": "steps_between_saves", "critic_warmup": "warmup_steps"}
    dead = {f"{k.__name__}.{f.name}" for k in KINDS for f in dataclasses.fields(k)
            if derived.get(f.name, f.name) not in names}  # fmt: skip
    assert dead == set() and "no_such_flag" not in names


@pytest.mark.parametrize("value", [False, True])
def test_a_switch_where_text_belongs_names_the_file(tmp_path, value):
    path = tmp_path / "config.json"
    config.save(GRPOConfig(), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"question": value}))
    with pytest.raises(InputError, match="config.json: not a GRPOConfig of this version"):
        config.load(GRPOConfig, path)
