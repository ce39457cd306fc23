"""Recipes: functions that return whole Experiments, by name."""

from pipelines.recipes.cifar import cifar10_epsd
from pipelines.recipes.digits import digits_epsd
from pipelines.recipes.imagenet import imagenet_epsd

RECIPES = {"digits_epsd": digits_epsd, "cifar10_epsd": cifar10_epsd, "imagenet_epsd": imagenet_epsd}

__all__ = ["RECIPES", "cifar10_epsd", "digits_epsd", "imagenet_epsd"]
