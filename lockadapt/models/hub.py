"""Whether the Hugging Face Hub can be reached. Does not import torch."""

from __future__ import annotations

import functools
import socket
import urllib.parse
import urllib.request


@functools.cache
def hub_is_reachable() -> bool:
    """Whether the Hub answers within seconds; asked once, so that offline runs do not retry for long."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    if urllib.request.getproxies().get(address.scheme):
        return True  # only the proxy can tell
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout=3).close()
    except OSError:
        return False
    return True
