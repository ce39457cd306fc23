"""Reads the objects of an image from Pascal VOC's XML files."""

import math
from xml.etree import ElementTree

import torch

from pipelines.data.source import Boxes

CLASSES: tuple[str, ...] = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""By label: 0 is the background, 1 to 20 are the official classes in alphabetical order."""

_LABELS = {name: label for label, name in enumerate(CLASSES) if label}


def parse(data: bytes, name: str, width: int, height: int) -> Boxes:
    """The objects of the XML file `name`; its image has `width` x `height` pixels.

    ValueError: not XML, a document type, another image size, or an object of an unknown class, outside the image or
    without an area.
    """
    root = _root(data, name)
    stated = (_number(root, "size/width", name), _number(root, "size/height", name))
    if stated != (width, height):
        raise ValueError(
            f"{name} is for an image of {stated[0]:g} x {stated[1]:g} pixels, but the image has {width} x {height}"
        )
    objects = [_object(each, f"{name}, object {i}", width, height) for i, each in enumerate(root.findall("object"), 1)]
    return Boxes(
        torch.tensor([box for box, _, _ in objects], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([label for _, label, _ in objects], dtype=torch.int64),
        torch.tensor([difficult for _, _, difficult in objects], dtype=torch.bool),
    )


def _root(data: bytes, name: str) -> ElementTree.Element:
    try:
        text = data.decode("utf-8-sig")
        # Entities can expand to a huge text or name other files; no annotation needs them.
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ValueError(
                f"{name} has a document type or entities, which official annotations do not have: download it again"
            )
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is not readable XML ({error}): download it again") from error


def _object(element: ElementTree.Element, name: str, width: int, height: int) -> tuple[list[float], int, bool]:
    class_name = (element.findtext("name") or "").strip()
    if class_name not in _LABELS:
        raise ValueError(f"{name} has the unknown class {class_name!r}: the classes are {', '.join(_LABELS)}")
    xmin, ymin, xmax, ymax = (_number(element, f"bndbox/{side}", name) for side in ("xmin", "ymin", "xmax", "ymax"))
    left, top = xmin - 1, ymin - 1
    if not (0 <= left < xmax <= width and 0 <= top < ymax <= height):
        raise ValueError(
            f"{name}: the box from ({xmin:g}, {ymin:g}) to ({xmax:g}, {ymax:g}) lies outside its image of {width} x "
            f"{height} pixels, counted from 1, or has no area"
        )
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise ValueError(f"{name}: <difficult> must be 0 or 1, not {difficult!r}")
    return [left, top, xmax, ymax], _LABELS[class_name], difficult == "1"


def _number(element: ElementTree.Element, path: str, name: str) -> float:
    text = element.findtext(path)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name}: <{path.replace('/', '><')}> must hold a number, not {text!r}")
    return value
