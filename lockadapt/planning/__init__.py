"""What a run will need: memory, arithmetic and time, before a weight is loaded."""
