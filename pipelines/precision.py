"""The precision of a training, and which one pays on this machine's hardware."""

from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16", "float64"]

FAST_ON_CPU = ("avx512_bf16", "amx_bf16")
"""Flags of processors that multiply in bfloat16; others convert every number, which is slower than float32."""

CPUINFO = Path("/proc/cpuinfo")


def best() -> tuple[Precision, str]:
    """bfloat16 where this machine's GPU, or without one its processor, computes in it, else float32; and the reason."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", f"{name} computes in it"
        return "float32", f"{name} has no bfloat16"
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    found = [flag for flag in FAST_ON_CPU if flag in flags]
    if found:
        return "bfloat16", f"this processor has {' and '.join(found)}"
    return "float32", f"this processor has neither {' nor '.join(FAST_ON_CPU)}"
