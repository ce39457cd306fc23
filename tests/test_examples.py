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


def test_my_data_set(tmp_path: Path):
    [accuracy] = re.findall(r"\n\S.*: test accuracy ([\d.]+)%", output_of("my_data_set.py", tmp_path))
    assert float(accuracy) > 80
    assert len(list((tmp_path / "my-images/test").glob("*/*.png"))) == 297


def test_my_criterion(tmp_path: Path):
    first = re.findall(r"^(.+): test accuracy 0\.(\d+)$", output_of("my_criterion.py", tmp_path, "runs"), re.MULTILINE)
    assert [label for label, _ in first] == ["relative magnitude + CE", "magnitude + CE"]
    assert "epoch" not in output_of("my_criterion.py", tmp_path, "runs"), "finished runs are not repeated"
