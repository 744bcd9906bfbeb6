"""Rows become samples, samples become tokens and pixels, tokens become batches."""
