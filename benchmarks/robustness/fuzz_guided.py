"""One target of benchmarks/robustness/fuzz.py under atheris, which mutates inputs toward code not seen yet.

    python -m benchmarks.robustness.fuzz_guided completions -runs=10000 CORPUS

benchmarks/robustness/fuzz.py starts it: libFuzzer ends its process itself.
"""

import sys

import atheris

with atheris.instrument_imports(
    include=["answers", "rewards", "tasks", "checkpoint", "config", "report", "reporting", "model"]
):
    from benchmarks.robustness.fuzz import TARGETS, timed


def main() -> None:
    target, longest = TARGETS[sys.argv[1]], 0.0

    def one(data: bytes) -> None:
        nonlocal longest
        seconds = timed(target, data)
        if seconds > longest:
            longest = seconds
            print(f"LONGEST {longest:.4f}", file=sys.stderr, flush=True)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
