"""FFCV's JPEG decoder alone, without the import of FFCV, which takes seconds."""

import ctypes
import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pipelines.data.ffcv.installed import require_installed


def is_sound(data: bytes, height: int, width: int) -> bool:
    """Whether the decoder accepts a JPEG file without a warning.

    It warns of what other decoders accept, such as bytes between the markers, and the reader treats warnings as damage.
    """
    pixels = np.empty((height, width, 3), np.uint8)
    source = np.frombuffer(data, np.uint8)
    whole = (height, width, pixels.ctypes.data, height, width, 0, 0, 1, 1, False, False)
    return _decoder()(source.ctypes.data, len(data), *whole) == 0


@functools.cache
def _decoder() -> Callable[..., int]:
    require_installed()
    spec = find_spec("ffcv")
    assert spec is not None
    assert spec.submodule_search_locations
    [library] = Path(spec.submodule_search_locations[0]).glob("_libffcv*.so")
    found = ctypes.CDLL(str(library)).imdecode
    number, flag, address = ctypes.c_uint32, ctypes.c_bool, ctypes.c_void_p
    found.argtypes = [address, ctypes.c_uint64, number, number, address, *[number] * 6, flag, flag]
    return found
