"""What a live model is, so that a test can say that nothing of it changed."""

from __future__ import annotations

from typing import Any

from lockadapt.tuning.locks import tensor_digest


def state(model: Any) -> dict[str, Any]:
    """Everything of a model that an adapter could change: bytes, flags, objects, classes, hooks, modes, attributes, configs."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    digests: dict[str, Any] = {
        f"bytes {name}": (id(t), tensor_digest(t), t.requires_grad) for name, t in tensors
    }
    for name, p in model.named_parameters():
        quantized = getattr(p, "quant_state", None)
        if quantized is not None:
            digests[f"absmax {name}"] = tensor_digest(quantized.absmax)
    for name, module in model.named_modules(remove_duplicate=False):
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        digests[f"module {name}"] = (
            *(id(module), type(module), module.training, [len(h) for h in hooks], list(module._modules)),
            sorted(vars(module)),
        )
    configs = (model.config, getattr(model, "generation_config", None))
    digests["configs"] = [None if config is None else config.to_json_string() for config in configs]
    return digests
