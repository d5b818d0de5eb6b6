"""What the source never does: run what it reads.

Checkpoints, data sets, configurations and logs come from anywhere. They are read as safetensors,
JSON, pictures and tables; nothing that can hold a program is opened, and no text becomes code. The
one exception is `--reward`, which is the user's own program (training/reward_worker.py).
Hostile inputs have their tests beside the readers: test_rows.py, test_weights.py and others.
"""

import ast
import builtins
import shutil
from pathlib import Path

import pytest

import train_grpo

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("runtime", "kernels", "model", "data", "tasks", "training", "reporting")
SOURCES = sorted(ROOT.glob("*.py")) + [p for f in FOLDERS for p in sorted((ROOT / f).rglob("*.py"))]
MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle", "code"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
USERS_PROGRAM = {"training/reward_worker.py": ["exec", "compile"]}
METHODS = {  # of any object: the names are unusual enough
    *("torch.load", "torch.save", "np.load", "numpy.load", "yaml.load", "os.system", "os.popen"),
    *("torch.hub.load", "jit.load", "torch.jit.load", "pd.read_pickle"),
}


def dangers(source: str) -> list[str]:
    """What a piece of source does that it must not."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if (isinstance(node.func, ast.Name) and name in CALLS) or name in METHODS:
                found.append(name)
            for keyword in node.keywords:
                is_on = not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
                if keyword.arg in ("trust_remote_code", "allow_pickle", "shell") and is_on:
                    found.append(f"{name}({keyword.arg})")
    return found


@pytest.mark.case("I34", "F25")
def test_no_file_runs_what_it_reads():
    found = {p.relative_to(ROOT).as_posix(): dangers(p.read_text("utf-8")) for p in SOURCES}
    assert {path: names for path, names in found.items() if names} == USERS_PROGRAM
    assert len(found) > 60


@pytest.mark.parametrize(
    "source, danger",
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("import dill as json", "dill"),
        ("eval('1')", "eval"),
        ("exec(text)", "exec"),
        ("torch.load(path)", "torch.load"),
        ("np.load(path, allow_pickle=True)", "np.load"),
        ("subprocess.run(line, shell=True)", "subprocess.run(shell)"),
        ("A.load(d, trust_remote_code=flag)", "A.load(trust_remote_code)"),
        ("os.system(line)", "os.system"),
        ("import json\nre.compile('x')\nmodel.eval()\nrun(x, shell=False)", None),
    ],
)
def test_the_check_itself_can_fail(source, danger):
    assert dangers(source)[:1] == ([danger] if danger else [])


def test_only_the_worker_imports_a_users_file_and_training_gets_text_from_it():
    """What the function returned never crosses the process border, only JSON made of floats."""
    text = (ROOT / "training/reward_worker.py").read_text(encoding="utf-8")
    worker, training = text.split("class Workers:")
    assert worker.count("exec(compile(") == 1 and not dangers(f"class Workers:{training}")
    assert "def answer(texts: list[str], example: Example | None) -> str:" in worker
    assert training.count("future.result(") == training.count("json.loads(future.result(") == 1


@pytest.mark.case("F25")
def test_a_planted_pickle_in_a_run_is_never_opened(tiny_dir, tmp_path, monkeypatch):
    """A file that would write another one if anybody unpickled it."""
    out, opened = tmp_path / "run", []
    line = f"--model {tiny_dir} --task count --train_size 4 --held_out_size 1 --prompts_per_step 2"
    line += " --max_completion_length 4 --report_prompts 0 --max_steps 2 --save_steps 1"
    train_grpo.main([*line.split(), "--output_dir", str(out)])
    shutil.rmtree(out / "step_2")
    names = ("optimizer.pt", "pytorch_model.bin", "rng_state.pth", "training_args.bin")
    for folder in (out, out / "step_1", out / "step_1" / "hf", out / "step_1" / "trainer"):
        for name in names:
            (folder / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    original = builtins.open

    def watched(file, *rest, **more):
        opened.append(str(file))
        return original(file, *rest, **more)

    monkeypatch.setattr(builtins, "open", watched)
    monkeypatch.chdir(tmp_path)
    train_grpo.main(["--resume_from_checkpoint", str(out)])
    assert not (tmp_path / "owned").exists()
    assert opened and not [name for name in opened if name.endswith(names)]
