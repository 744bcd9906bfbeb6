"""What is done to a model of any architecture so that it can be trained: quantization, LoRA, query tokens, locks, digests."""
