"""Frozen outputs of towers and image tokenizers: computed, kept in memory or on disk, handed back."""
