"""Any classifier of timm or torchvision by name, with random weights, and MobileNetV2."""

from collections.abc import Mapping
from typing import Any

from torch import nn

AUXILIARY = ("googlenet", "inception_v3")
"""Built without auxiliary heads (objectives take one tensor of logits), with the input scaling of their weights."""


ARGUMENTS = {
    "timm": (
        *("act_layer", "attn_drop_rate", "drop_block_rate", "drop_path_rate", "drop_rate", "global_pool", "img_size"),
        *("in_chans", "output_stride", "patch_size", "proj_drop_rate", "zero_init_last"),
    ),
    "torchvision": (
        *("attention_dropout", "aux_logits", "dropout", "drop_rate", "image_size", "init_weights", "norm_eps"),
        *("stochastic_depth_prob", "transform_input", "width_mult", "zero_init_residual"),
    ),
}
"""What an artefact may pass to a hub's builders: nothing that names a file or an address."""


def _check(hub: str, arguments: Mapping[str, Any]) -> None:
    unknown = sorted(set(arguments) - set(ARGUMENTS[hub]))
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)} is no argument that {hub}'s networks are built with here: use "
            f"{', '.join(ARGUMENTS[hub])}"
        )


def timm_names() -> list[str]:
    import timm  # the import takes seconds, like torchvision's

    return timm.list_models()


def timm_classifier(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """timm.create_model without weights; `arguments` are its own (img_size, drop_path_rate...)."""
    import timm

    _check("timm", arguments)
    return timm.create_model(name, pretrained=False, num_classes=num_classes, **arguments)


def torchvision_names() -> list[str]:
    from torchvision import models

    # The top module contains the classifiers; detection, segmentation, video and flow are in submodules.
    return models.list_models(module=models)


def torchvision_classifier(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """torchvision's builder without weights; `arguments` are its own (dropout, width_mult...)."""
    from torchvision import models

    _check("torchvision", arguments)
    if name in AUXILIARY:
        arguments = {"aux_logits": False, "init_weights": True, "transform_input": True, **arguments}
    return models.get_model(name, weights=None, num_classes=num_classes, **arguments)


def mobilenet_v2(num_classes: int, **arguments: Any) -> nn.Module:
    """MobileNetV2 of width 1 (Sandler et al., CVPR 2018, arXiv 1801.04381)."""
    return torchvision_classifier("mobilenet_v2", num_classes, **arguments)


def mobilenet_v2_small(num_classes: int, **arguments: Any) -> nn.Module:
    """MobileNetV2 without the first two of its five downsamplings, so that 32x32 images end at 4x4."""
    model: Any = mobilenet_v2(num_classes, **arguments)
    for convolution in (model.features[0][0], model.features[2].conv[1][0]):
        assert convolution.stride == (2, 2)
        convolution.stride = (1, 1)
    return model
