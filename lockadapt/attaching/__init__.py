"""Drops a trained adapter onto a live Hugging Face model, and takes it off again without a trace."""
