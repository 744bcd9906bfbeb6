"""Makes the objects of a run from its recipe: samples, objectives, model."""
