"""Export: a finished network as a torch.export archive (.pt2) or as ONNX. The file is then checked.

It takes batches of any size and, where the network allows it, images of any size.

python -m compression.export RUN_FOLDER --onnx FILE writes a file that runs without this repository.
"""

import argparse
import contextlib
import copy
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compression import artifact
from compression.channels import difference, example_images

BATCH_SIZES = (1, 2, 5)
"""Numbers of images with which a written file is checked."""
BATCH = {0: torch.export.Dim("batch", min=1)}
PIXELS = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
TOLERANCE = 1e-4
"""Largest allowed difference of outputs, relative to the largest output or 1: runtimes sum float32 in another order."""


def to_torch_export(model: nn.Module, input_shape: Sequence[int], path: Path | str) -> float:
    """Write `model` in eval mode to `path` (.pt2); returns the largest relative difference of its outputs.

    input_shape: (C, H, W), the usual size of an image. `torch.export.load(path).module()` reads the file. Weights keep
    their precision.
    Errors: ValueError with the difference if the file gives different outputs, or for another suffix of the path.
    """
    path = _with_ending(path, ".pt2")
    model = copy.deepcopy(model).cpu().eval()

    def write(dynamic: Dynamic) -> Callable[[Tensor], Tensor]:
        program = torch.export.export(model, (example_images(model, input_shape),), dynamic_shapes=dynamic)
        torch.export.save(program, path)
        return torch.export.load(path).module()

    return _for_every_size(model, write, input_shape, path)


def to_onnx(model: nn.Module, input_shape: Sequence[int], path: Path | str) -> float:
    """Write `model` in eval mode to `path` (.onnx); returns the largest relative difference of its outputs.

    input_shape: (C, H, W), the usual size of an image. The input is "images" (N, C, H, W), the output "logits" (N, K).
    Both are float32, as are the weights. The check runs the file with onnxruntime. Errors as for `to_torch_export`.
    """
    import onnxruntime

    path = _with_ending(path, ".onnx")
    model = copy.deepcopy(model).cpu().float().eval()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3

    def write(dynamic: Dynamic) -> Callable[[Tensor], Tensor]:
        images, inputs, outputs = (example_images(model, input_shape),), ["images"], ["logits"]
        program = torch.onnx.export(
            model, images, dynamo=True, dynamic_shapes=dynamic, input_names=inputs, output_names=outputs, verbose=False
        )
        assert program is not None
        program.save(path, external_data=False)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda images: torch.as_tensor(session.run(["logits"], {"images": images.numpy()})[0])

    return _for_every_size(model, write, input_shape, path)


Dynamic = tuple[dict[int, Any]]
"""Place of a dimension -> how it may change."""


def _for_every_size(
    model: nn.Module, write: Callable[[Dynamic], Callable[[Tensor], Tensor]], input_shape: Sequence[int], path: Path
) -> float:
    """Write the file for images of any size, or of the usual size alone; the largest difference over its checks."""
    other = (input_shape[0], input_shape[1] + 8, input_shape[2] + 24)
    with _quiet():
        try:
            with torch.no_grad():
                model(example_images(model, other))
            written = write(({**BATCH, **PIXELS},))
            return max(_check(model, written, shape, path) for shape in (input_shape, other))
        except Exception:  # the network, the exporter or the runtime has a fixed size
            written = write((BATCH,))
    return _check(model, written, input_shape, path)


def _with_ending(path: Path | str, ending: str) -> Path:
    path = Path(path)
    if path.suffix != ending:
        raise ValueError(f"name the file {path.with_suffix(ending)}: {path.name} does not end in {ending}")
    return path


def _check(model: nn.Module, written: Callable[[Tensor], Tensor], input_shape: Sequence[int], path: Path) -> float:
    """The largest relative difference between the model and the written file, over several batch sizes."""
    worst = 0.0
    for size in BATCH_SIZES:
        images = example_images(model, input_shape, num=size, seed=size)
        with torch.no_grad():
            expected, found = model(images), written(images)
        if found.shape != expected.shape:
            raise ValueError(f"{path} gives {tuple(found.shape)} for {size} images, not {tuple(expected.shape)}")
        worst = max(worst, difference(expected, found))
        if worst > TOLERANCE:
            raise ValueError(
                f"{path} does not agree with the {type(model).__name__} from which it was made: for {size} images "
                f"the outputs differ by {worst:.3g} of the largest output, more than {TOLERANCE:g}"
            )
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporters' progress reports on stdout, in loggers and in warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m compression.export",
        description="Write the network of a finished run for other runtimes, and check that it gives the same outputs.",
        epilog="Example: python -m compression.export storage/runs/IDENTITY --onnx resnet20.onnx",
    )
    parser.add_argument("run", type=Path, help="folder with arch.json and model.safetensors")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="write ONNX here (.onnx), for onnxruntime and others")
    parser.add_argument("--torch-export", type=Path, metavar="FILE", help="write a torch.export archive here (.pt2)")
    shape = "channels, height and width of one image (default: those with which the network was trained)"
    parser.add_argument("--input-shape", type=int, nargs=3, metavar=("C", "H", "W"), help=shape)
    options = parser.parse_args(arguments)
    if not (options.onnx or options.torch_export):
        parser.error("name a file to write: --onnx FILE, --torch-export FILE, or both")
    try:
        model = artifact.load(options.run)
        input_shape = options.input_shape or artifact.describe(options.run).get("inputs", {}).get("shape")
        if input_shape is None:
            raise ValueError(f"{options.run} does not say for which images it is: give --input-shape C H W")
        for write, path in ((to_onnx, options.onnx), (to_torch_export, options.torch_export)):
            if path:
                print(f"{path}: outputs agree within {write(model, input_shape, path):.2g}")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
