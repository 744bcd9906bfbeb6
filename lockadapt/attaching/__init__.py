"""Drops a trained adapter onto a live Hugging Face model, and takes it off again without a trace."""

# First, because Transformers and PEFT import bitsandbytes, which speaks to the terminal.
import lockadapt.models.bitsandbytes  # noqa: F401
