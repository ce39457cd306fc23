"""Records: JSON files that carry a checksum of their content, and the sha256 of the files that they vouch for."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.atomic import write_atomically

CHECKSUM = "checksum"
"""Key of a record's own sha256, which is taken of all its other keys."""


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as JSON; NaN and infinities in Python's spelling, which read_json reads."""
    write_atomically(path, as_json(value))


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write `record` atomically as JSON with its checksum: `read_json` notices whatever changes it later."""
    write_atomically(path, as_record(record))


def read_json(path: Path) -> Any:
    """The value of a JSON file; of a record without its checksum.

    ValueError with the file's name: it is incomplete, or a record that is not as it was written. Records of earlier
    versions have no checksum.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no complete JSON file: {error}") from error
    checksum = value.pop(CHECKSUM, None) if isinstance(value, dict) else None
    if checksum is not None and checksum != sha256(as_json(value)):
        raise ValueError(f"{path} is damaged or was edited: its content does not fit its checksum")
    return value


def as_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def as_record(record: Mapping[str, Any]) -> bytes:
    assert CHECKSUM not in record
    return as_json({**record, CHECKSUM: sha256(as_json(record))})


def sha256(data: bytes) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: Path) -> str:
    """`sha256` of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_bytes(path: Path, data: bytes, expected: str | None) -> bytes:
    """`data`, which was read from `path`. ValueError: its sha256 is not `expected`; None: not known."""
    if expected is not None and (found := sha256(data)) != expected:
        raise ValueError(f"{path} is damaged: its sha256 is {found[:16]}..., recorded was {expected[:16]}...")
    return data


def damaged(folder: Path, files: Mapping[str, str]) -> list[str]:
    """What is wrong with files of a folder, one text each. files: name -> recorded sha256."""
    found = []
    for name, expected in files.items():
        path = folder / name
        try:
            if sha256_of(path) != expected:
                found.append(f"{path} is damaged: it does not have the recorded sha256")
        except FileNotFoundError:
            found.append(f"{path} is missing")
        except OSError as error:
            found.append(f"{path} cannot be read ({error.strerror or error})")
    return found
