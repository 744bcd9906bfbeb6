"""For machines whose torchvision was built for another torch: defines two operators without which it does not import.

Such a torchvision cannot run them, and image processors do not. Import this before Transformers:
`python -m pytest -p tests.support.torchvision_operators tests/architectures/test_zoo.py`.
"""

from __future__ import annotations

import torch

SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

try:
    import torchvision  # noqa: F401
except ImportError:
    pass  # there is none: nothing to do
except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")  # kept: its operators live as long as it does
    library.define(f"nms{SIGNATURE}")
    library.define(f"qnms{SIGNATURE}")
