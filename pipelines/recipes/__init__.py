"""Recipes: functions that return whole Experiments, by name."""

from pipelines.recipes.cifar import cifar10_epsd, cifar100_epsd, images_epsd
from pipelines.recipes.digits import digits_epsd
from pipelines.recipes.imagenet import imagenet_epsd
from pipelines.recipes.parts import Choices

RECIPES = {
    "digits_epsd": digits_epsd,
    "cifar10_epsd": cifar10_epsd,
    "cifar100_epsd": cifar100_epsd,
    "images_epsd": images_epsd,
    "imagenet_epsd": imagenet_epsd,
}

__all__ = ["RECIPES", "Choices", "cifar10_epsd", "cifar100_epsd", "digits_epsd", "imagenet_epsd", "images_epsd"]
