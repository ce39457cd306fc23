"""A process in which the optional packages cannot be imported."""

BLOCK = """
import sys

BLOCKED = {"ray", "mlflow", "deepspeed", "ffcv", "pyarrow", "optuna", "matplotlib"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""
"""The beginning of its program; BLOCKED names the packages."""
