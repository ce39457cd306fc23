"""Any classifier of timm or torchvision by name, with random weights, and MobileNetV2."""

from typing import Any

from torch import nn

AUXILIARY = ("googlenet", "inception_v3")
"""Built without auxiliary heads (objectives take one tensor of logits), with the input scaling of their weights."""


def timm_names() -> list[str]:
    import timm  # the import takes seconds, like torchvision's

    return timm.list_models()


def timm_classifier(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """timm.create_model without weights; `arguments` are its own (img_size, drop_path_rate...)."""
    import timm

    return timm.create_model(name, pretrained=False, num_classes=num_classes, **arguments)


def torchvision_names() -> list[str]:
    from torchvision import models

    # The top module contains the classifiers; detection, segmentation, video and flow are in submodules.
    return models.list_models(module=models)


def torchvision_classifier(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """torchvision's builder without weights; `arguments` are its own (dropout, width_mult...)."""
    from torchvision import models

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
