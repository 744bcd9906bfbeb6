"""Proofs that a written folder is the trained model, each in a fresh process."""
