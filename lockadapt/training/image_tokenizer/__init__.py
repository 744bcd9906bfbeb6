"""Training of an image tokenizer of one's own."""
