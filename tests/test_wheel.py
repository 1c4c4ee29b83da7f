"""What the wheel and the sdist hold. ``make wheel`` also installs the wheel and trains with it, which takes longer."""

import subprocess
import sys

import pytest
import wheel_check

from seqssgd import __version__


def test_wheel_and_sdist_hold_the_sources_and_nothing_else(tmp_path):
    pytest.importorskip("hatchling", reason="comes with make venv")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run(command, cwd=wheel_check.ROOT, check=True, capture_output=True, timeout=200)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    wheel_check.check_wheel(wheel, __version__)
    wheel_check.check_sdist(sdist)
