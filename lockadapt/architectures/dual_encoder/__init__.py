"""The dual encoder: a frozen tower and a text model side by side, as `VisionTextDualEncoderModel` holds them."""
