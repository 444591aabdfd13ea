"""What a quick answer may not import: each command runs in a process of its own, and is asked what it loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "mlflow", "transformers", "torchvision", "datasets", "sklearn", "pandas", "matplotlib", "optuna"}
HYDRA = {"hydra", "omegaconf"}

PROGRAM = """
import sys
sys.argv = ["dlrun", *{arguments!r}]
from dlrun.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code or 0
loaded = sorted({{name.split(".")[0] for name in sys.modules}})
print("\\n" + " ".join(["LOADED", str(code), *loaded]))
"""


def loaded_by(*arguments: str, folder: Path, **environment: str) -> tuple[int, set[str], str]:
    """(exit code, top-level modules in memory at the end, all it printed) of one command."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(arguments=list(arguments))],
        capture_output=True, text=True, cwd=folder, env=os.environ | environment, check=True,
    )  # fmt: skip
    last = done.stdout.rstrip().splitlines()[-1].split(" ")
    assert last[0] == "LOADED", done.stdout + done.stderr
    return int(last[1]), set(last[2:]), done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("list",), ("list", "model"), ("show", "model", "resnet20"), ("train", "--help"),
     ("init", "project")],
    ids=" ".join,
)  # fmt: skip
def test_a_quick_answer_imports_nothing_heavy(arguments, tmp_path):
    code, loaded, _ = loaded_by(*arguments, folder=tmp_path)
    assert code == 0
    assert loaded & (HEAVY | HYDRA) == set()


def test_completion_imports_nothing_heavy(tmp_path):
    # The words are those of bash, which takes "=" for a word of its own.
    environment = {
        "_DLRUN_COMPLETE": "complete_bash",
        "COMP_WORDS": "dlrun\ntrain\nmodel\n=\nresnet2",
        "COMP_CWORD": "4",
    }
    _, loaded, text = loaded_by(folder=tmp_path, **environment)
    assert text.startswith("resnet20\n")
    assert loaded & (HEAVY | HYDRA) == set()


@pytest.mark.parametrize(
    ("override", "says"),
    [("model.depht=3", "did you mean model.depth?"), ("model=resnt20", "did you mean resnet20?"),
     ("train.precision=fp8", "one of fp32, bf16, fp16 is expected"), ("nonsense=1", "unknown setting 'nonsense'")],
)  # fmt: skip
def test_a_config_error_imports_nothing_heavy(override, says, tmp_path):
    code, loaded, text = loaded_by("train", "model=resnet20", override, folder=tmp_path)
    assert code == 2
    assert says in text
    assert loaded & HEAVY == set()


def test_printing_the_config_imports_nothing_heavy(tmp_path):
    code, loaded, text = loaded_by("train", "--print-config", folder=tmp_path)
    assert code == 0 and "batch_size:" in text
    assert loaded & HEAVY == set()
