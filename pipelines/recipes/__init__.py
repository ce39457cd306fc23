"""Recipes by name: functions that return a whole Experiment. Their parameters are options of the command line."""

from pipelines.recipes.cifar import cifar10_epsd, cifar100_epsd, images_epsd, tiny_imagenet_epsd
from pipelines.recipes.cub import cub_epsd
from pipelines.recipes.digits import digits_epsd
from pipelines.recipes.imagenet import imagenet_dense, imagenet_epsd
from pipelines.recipes.pdd import cifar10_pdd, cifar100_pdd, imagenet_pdd
from pipelines.recipes.prune_then_distill import (
    cifar100_prune_then_distill,
    imagenet_prune_then_distill,
    tiny_imagenet_prune_then_distill,
)

RECIPES = {
    "digits_epsd": digits_epsd,
    "cifar10_epsd": cifar10_epsd,
    "cifar100_epsd": cifar100_epsd,
    "tiny_imagenet_epsd": tiny_imagenet_epsd,
    "images_epsd": images_epsd,
    "imagenet_dense": imagenet_dense,
    "imagenet_epsd": imagenet_epsd,
    "cub_epsd": cub_epsd,
    "cifar100_prune_then_distill": cifar100_prune_then_distill,
    "tiny_imagenet_prune_then_distill": tiny_imagenet_prune_then_distill,
    "imagenet_prune_then_distill": imagenet_prune_then_distill,
    "cifar10_pdd": cifar10_pdd,
    "cifar100_pdd": cifar100_pdd,
    "imagenet_pdd": imagenet_pdd,
}
