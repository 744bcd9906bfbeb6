"""Scores of texts, pinned to the official scorers, and of embeddings; imports nothing but errors."""
