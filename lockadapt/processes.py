"""The processes that train together: which one this is, work for the first, waiting, agreeing, adding up.

Alone, every function does its work at once and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from lockadapt.errors import LockadaptError, ProcessEndedError, SetupError

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: the first one assembles models while the rest wait."""

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)

Made = TypeVar("Made")


def launched() -> bool:
    """Whether a launcher (torchrun, accelerate, `--processes`) started this process beside others."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def restarted() -> bool:
    """Whether an elastic launcher (`--max-restarts`) started the processes again, after one of them ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0


def join() -> None:
    """Meets the other processes, if a launcher started any; a second call does nothing.

    On GPUs each process takes the one of its local rank.

    Raises:
        SetupError: this process had begun to work alone before.
    """
    if not launched():
        return
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    if _group_size() == 1:
        raise SetupError(
            "this process cannot meet the others, as accelerate already works alone in it",
            where="WORLD_SIZE",
            fix="set the launcher's variables before anything of accelerate is made, or unset them",
        )


def take_gpu() -> None:
    """Gives each process of a launcher the GPU of its local rank, where they do not `join`."""
    if launched():
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0))


def count() -> int:
    """How many processes work together; 1 inside `alone`."""
    return 1 if _ALONE.get() else _group_size()


def rank() -> int:
    """The number of this process among them, from 0; 0 inside `alone`."""
    import torch.distributed as dist

    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    if _group_size() == 1:  # alone, or not met yet
        return not launched() or int(os.environ.get("RANK") or 0) == 0
    import torch.distributed as dist

    return dist.get_rank() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within the block this process works for itself: nothing is gathered, added up or waited for."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def wait() -> None:
    """Waits until every process is here."""
    if count() > 1:
        add_up(_numbers([0.0]))


def first(work: Callable[[], Made]) -> Made | None:
    """Lets the first process work while the others wait.

    Args:
        work: what is done once.

    Returns:
        What it gave, on the first process; None on the others.

    Raises:
        ProcessEndedError: on the others, where it failed; the first one raises the error itself.
    """
    return together(lambda: work() if is_first() else None)


def together(work: Callable[[], Made]) -> Made:
    """Works on every process; where any of them fails, all end, and one of them says why.

    Args:
        work: must not wait for other processes after a point where it can fail on one of them.

    Returns:
        What it gave on this process.

    Raises:
        ProcessEndedError: another process failed, which raises its error itself: the lowest that did.
    """
    if count() == 1:
        return work()
    error: BaseException | None = None
    made: Any = None
    try:
        made = work()
    except Exception as raised:
        error = raised
    codes = [int(code) for code in gather_numbers(float(_exit_code(error))).tolist()]
    failed = [number for number, code in enumerate(codes) if code]
    if failed and failed[0] == rank() and error is not None:
        raise error
    if failed:
        raise ProcessEndedError(f"process {failed[0]} failed", code=codes[failed[0]]) from error
    return made


def gather_numbers(value: float) -> Tensor:
    """The numbers of all processes in the order of their ranks, float64 (processes,) on the CPU."""
    import torch.distributed as dist

    own = _numbers([value])
    if count() == 1:
        return own
    own = own.to(_device())
    parts = [own.clone() for _ in range(count())]
    dist.all_gather(parts, own)
    import torch

    return torch.cat(parts).cpu()


def gather_bytes(data: bytes) -> list[bytes]:
    """What each process gave, in the order of their ranks; all of them must call."""
    import torch
    import torch.distributed as dist

    if count() == 1:
        return [data]
    sizes = [int(size) for size in gather_numbers(float(len(data))).tolist()]
    own = torch.zeros(max(sizes), dtype=torch.uint8)
    own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else own[:0]
    own = own.to(_device())
    parts = [torch.empty_like(own) for _ in sizes]
    dist.all_gather(parts, own)
    return [part[:size].cpu().numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]


def dealt(items: Sequence[Made]) -> list[Made]:
    """Those of the same items on every process that are this one's: every N-th."""
    return list(items[rank() :: count()])


def add_up(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on the device where it is; alone, the tensor itself."""
    import torch.distributed as dist

    if count() == 1:
        return tensor
    total = tensor.to(_device()).clone()
    dist.all_reduce(total)
    return total.to(tensor.device)


def share_first(tensor: Tensor) -> Tensor:
    """The first process's values of a tensor that all have in the same shape, written into it."""
    import torch.distributed as dist

    if count() > 1:
        held = tensor.detach().to(_device()).contiguous()
        dist.broadcast(held, src=0)
        tensor.detach().copy_(held)
    return tensor


def other_ranks(text: str) -> list[int]:
    """The processes whose text is another than the first one's; all of them must call.

    Args:
        text: compared by its SHA-256.

    Returns:
        Their ranks; none where all agree.
    """
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    numbers = gather_numbers(float(digest)).tolist()
    return [number for number, value in enumerate(numbers) if value != numbers[0]]


def lost(error: BaseException) -> bool:
    """Whether an exception is how torch says that another process is gone."""
    if not launched():
        return False
    import torch.distributed as dist

    text = str(error).lower()
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _LOST)
    )


_LOST = ("connection closed by peer", "connection reset by peer", "gloo/transport", "socket closed")


def _group_size() -> int:
    import sys

    # A process that has not imported torch has met nobody.
    if "torch.distributed" not in sys.modules:
        return 1
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _device() -> str:
    """Where tensors must be that processes exchange."""
    import torch.distributed as dist

    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def _numbers(values: list[float]) -> Tensor:
    import torch

    return torch.tensor(values, dtype=torch.float64)


def _exit_code(error: BaseException | None) -> int:
    if error is None:
        return 0
    return error.exit_code if isinstance(error, LockadaptError) else 1
