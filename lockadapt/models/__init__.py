"""What is locked and what learns: Transformers models, assembled, quantized, adapted, proved."""

# First, because Transformers and PEFT import bitsandbytes, which speaks to the terminal.
import lockadapt.models.bitsandbytes  # noqa: F401
