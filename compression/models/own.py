"""People's own networks by the name of a function or class of theirs: "package.module:function".

To build such a network is to run its code, so an artefact that names one is loaded only where that is asked for.
"""

import difflib
import os
import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

ALLOW = "ORCHARD_ALLOW_IMPORT"
"""Environment variable: with the value 1, artefacts may name any importable network."""

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


def is_own(name: str) -> bool:
    return ":" in name and "/" not in name


def find(name: str) -> Callable[..., Any]:
    """The function or class that builds the network. Imports its module: of the current folder, or an installed one.

    ValueError: the name is none, or there is no such module or function.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise ValueError(f"a network of your own is named package.module:function, not {name!r}")
    module = _import(parts[1])
    function = getattr(module, parts[2], None)
    if not callable(function):
        near = difflib.get_close_matches(parts[2], [each for each in dir(module) if each[0] != "_"], n=1)
        hint = f"; did you mean {parts[1]}:{near[0]}?" if near else ""
        raise ValueError(f"{parts[1]} ({getattr(module, '__file__', 'built in')}) has no function {parts[2]}{hint}")
    return function


def build(name: str, num_classes: int, allow_import: bool, **arguments: Any) -> nn.Module:
    """The network that the function returns.

    allow_import: whether this process was asked to run that code. ValueError: it was not, the function fails, or it
    returns something else.
    """
    if not allow_import:
        raise ValueError(
            f"this artefact is of the network {name}, whose code would run: if you trust it, load it with "
            f"allow_import=True or set {ALLOW}=1"
        )
    function = find(name)
    try:
        model = function(num_classes=num_classes, **arguments)
    except Exception as error:
        raise ValueError(f"{name}(num_classes={num_classes}) failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} must return a torch.nn.Module, not {type(model).__name__}")
    return model


def source(name: str) -> Path | None:
    """The file of the network's code, if it is in one."""
    module = getattr(find(name), "__module__", name.partition(":")[0])  # of a function that another module only offers
    file = getattr(sys.modules[module], "__file__", None)
    return Path(file) if file else None


def _import(name: str) -> ModuleType:
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last: it hides no installed package
    try:
        return pkgutil.resolve_name(f"{name}:")  # the module itself
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            text = f"there is no module {error.name}: start the command in the folder that holds it, or install it"
            raise ValueError(text) from error
        raise ValueError(f"module {name} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"module {name} cannot be imported: {type(error).__name__}: {error}") from error
