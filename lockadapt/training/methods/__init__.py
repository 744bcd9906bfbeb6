"""Stages that TRL's own trainers train, on lockadapt's rows, features, locks, checks and checkpoints."""
