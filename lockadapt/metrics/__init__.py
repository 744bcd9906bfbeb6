"""Scores of answers and captions, each pinned to the official scorer's numbers, and of embeddings; imports nothing but errors."""
