"""From a recipe to the objects of a run: samples, objectives, model."""
