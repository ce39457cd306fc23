"""The scripts in examples/ run as users run them, and print what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def output_of(script: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_compress_my_network(tmp_path: Path):
    output = output_of("compress_my_network.py", tmp_path)
    dense, small = (int(macs.replace(",", "")) for macs in re.findall(r"([\d,]+) multiply-accumulates", output))
    assert 0.48 * dense < small < 0.52 * dense
    accuracies = [float(accuracy) for accuracy in re.findall(r"accuracy ([\d.]+)", output)]
    assert min(accuracies) > 0.9
    assert (tmp_path / "small.onnx").exists()
