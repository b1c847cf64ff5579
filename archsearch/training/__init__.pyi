from .init_from import CopiedLayer, InitialWeights, copy_layers, initialise, read_source
from .recipe import ChosenRecipe, TrainingRecipe, choose_recipe, load_recipe, recipe_names
from .train import TrainRequest, train

__all__ = [
    "ChosenRecipe",
    "CopiedLayer",
    "InitialWeights",
    "TrainRequest",
    "TrainingRecipe",
    "choose_recipe",
    "copy_layers",
    "initialise",
    "load_recipe",
    "read_source",
    "recipe_names",
    "train",
]
