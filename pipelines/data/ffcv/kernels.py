"""FFCV's native decoding and resizing, compiled into loops over a batch that release Python's global lock.

The caller starts the threads: numba's own (`prange`) can be used neither by several threads at once nor before a fork.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pipelines.data.ffcv.format import JPEG


class Kernels(NamedTuple):
    """Compiled once per process, which takes about a second after the import of FFCV.

    Nothing is checked: sources must lie inside the images, and targets must overlap the pictures.

    decode(address, images, sources, targets, whole, part, pictures) -> position of the first damaged image, or -1.
        address: of the file in memory. images: (N, 5) int64, rows of Beton.images. sources, targets: (N, 4) int64, of
        a Plan. whole, part: flat uint8, buffers for the largest image and for the largest target. pictures:
        (N, S, S, 3) uint8, overwritten.
    look_up(pictures, flips, table, out): out[n, y, x, c] = table[c, pictures[n, y, x or its mirror image, c]].
        flips: (N,) bool. table: (3, 256). out: (N, S, S, 3) of the table's type.
    """

    decode: Callable[..., int]
    look_up: Callable[..., None]


@functools.cache
def kernels() -> Kernels:
    from ffcv import libffcv  # pyright: ignore[reportAttributeAccessIssue] (optional)
    from numba import njit, types  # pyright: ignore[reportMissingImports]

    # FFCV sets this only in cv2's copy of OpenCV. Its native functions use another copy, whose threads would compete
    # with ours on pictures above 256 pixels.
    libffcv.lib._ZN2cv13setNumThreadsEi(1)  # cv::setNumThreads
    natives = libffcv.ctypes_imdecode, libffcv.ctypes_resize, libffcv.ctypes_memcopy
    table, flat = types.int64[:, ::1], types.uint8[::1]
    signature = types.int64(types.int64, table, table, table, flat, flat, types.uint8[:, :, :, ::1])
    return Kernels(njit(signature, nogil=True)(_decode(*natives)), njit(nogil=True)(_look_up))


def _decode(imdecode: Any, resize: Any, copy: Any) -> Callable[..., int]:
    """The loop around the native functions, which use addresses without checking them."""

    def decode(address, images, sources, targets, whole, part, pictures):
        side, first = pictures.shape[1], np.int64(pictures.ctypes.data)
        for n in range(len(images)):
            start, num_bytes, mode, height, width = images[n]
            top, left, h, w = sources[n]
            y, x, new_h, new_w = targets[n]
            pixels, picture = address + start, first + n * side * side * 3
            if mode == JPEG:
                # A warning of the decoder (incomplete or overwritten data) counts as an error, too.
                pixels = np.int64(whole.ctypes.data)
                if imdecode(address + start, num_bytes, height, width, pixels, height, width, 0, 0, 1, 1, False, False):
                    return n
            fills = y == 0 and x == 0 and new_h == side and new_w == side
            if h != new_h or w != new_w:
                resized = picture if fills else np.int64(part.ctypes.data)
                resize(0, pixels, height, width, top, top + h, left, left + w, resized, new_h, new_w)
                if fills:
                    continue
                pixels, width, top, left = resized, new_w, 0, 0
            first_y, last_y, first_x, last_x = max(y, 0), min(y + new_h, side), max(x, 0), min(x + new_w, side)
            if last_y - first_y < side or last_x - first_x < side:
                pictures[n] = 0
            for row in range(first_y, last_y):
                start = pixels + ((top + row - y) * width + left + first_x - x) * 3
                copy(start, picture + (row * side + first_x) * 3, (last_x - first_x) * 3)
        return -1

    return decode


def _look_up(pictures: Any, flips: Any, table: Any, out: Any) -> None:
    num, height, width, _ = pictures.shape
    for n in range(num):
        for y in range(height):
            for x in range(width):
                pixel = pictures[n, y, width - 1 - x if flips[n] else x]
                for c in range(3):
                    out[n, y, x, c] = table[c, pixel[c]]
