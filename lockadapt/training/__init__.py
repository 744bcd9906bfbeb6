"""From recipe to run folder: trainer, checks, checkpoints, progress."""

# First, because Transformers and PEFT import bitsandbytes, which speaks to the terminal.
import lockadapt.models.bitsandbytes  # noqa: F401
