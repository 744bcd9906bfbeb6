"""What makes a model of any architecture trainable: quantization, LoRA, query tokens, locks, digests."""
