"""Programs whose standard streams are closed, broken, full, or of a terminal that knows only ASCII."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_task

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
SETTINGS = json.dumps({"training": {"epochs": 2, "log_every": 1}})


def shell(command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", command],
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )


def toy(run: Path) -> str:
    return f"{sys.executable} {toy_task.__file__} {run} '{SETTINGS}' '{{}}'"


@pytest.mark.parametrize("streams", [">&-", ">&- 2>&-", "<&- >&-", ">/dev/full", "| true; exit ${PIPESTATUS[0]}"])
def test_training_does_not_depend_on_who_listens(tmp_path, streams):
    done = shell(f"{toy(tmp_path / 'run')} {streams}")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run/result.json").read_text())["steps"] == 10
    for path in (tmp_path / "run").rglob("*"):  # nothing printed ended in a file that took the number of a closed one
        assert path.is_dir() or b"finished at step" not in path.read_bytes()
    assert ("standard output cannot be written" in done.stderr) == (streams[0] == "|" or "full" in streams)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_the_characters_gets_them_spelled_out(encoding):
    code = "import sys; from seqssgd.errors import run_cli; sys.exit(run_cli(lambda: print('1 ± 2 → é')))"
    done = shell(f'{sys.executable} -c "{code}"', PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and "1 " in done.stdout and "u2192" in done.stdout


@pytest.mark.parametrize("program", ["recipes/ptb_lstm/train.py", "recipes/wsj_sgcn/ngram.py"])
def test_ctrl_c_while_a_program_is_loading_is_one_word(program):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", str(ROOT / program), "--help"],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        pipesize=4096,  # it waits for the reader before it can have imported all
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell in the background ignores
    )  # fmt: skip
    for line in process.stderr:  # its list of imports
        if "torch" in line:
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130) and "Traceback" not in err
