"""From a run to folders that others load, each proved before it counts as written."""
