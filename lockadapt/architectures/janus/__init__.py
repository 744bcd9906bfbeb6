"""Text-to-image by discrete image tokens in the stock Janus class: its tower, its image tokenizer, its generation parts."""
