"""A process that has imported all that a command may import. For each case it forks, and the child is the command.

    python server.py            requests and answers are lines of JSON on stdin and stdout

A request is {"arguments", "cwd", "memory", "seconds"}; its answer {"code", "out", "err", "peak", "seconds"}: the exit
code (minus the signal where one ended it), both streams, bytes of memory on top of the process's own, and the time.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

# Operators of torchvision have to be there before Transformers looks for it.
# isort: off
import torch
import tests.support.torchvision_operators  # noqa: F401

# isort: on
import datasets  # noqa: F401
import transformers

import lockadapt.building.cache
import lockadapt.evaluation.evaluate
import lockadapt.evaluation.generate
import lockadapt.evaluation.search
import lockadapt.exports.merge_command
import lockadapt.exports.verify
import lockadapt.planning.check
import lockadapt.planning.plan
import lockadapt.recipe.explain
import lockadapt.training.image_tokenizer.folder
import lockadapt.training.loop  # noqa: F401
from lockadapt.cli import main
from lockadapt.data.readers import read_samples  # noqa: F401


def serve() -> None:
    """Until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+b") as out, tempfile.TemporaryFile("w+b") as err:
            started = time.monotonic()
            child = os.fork()
            if child == 0:
                run(request, out.fileno(), err.fileno())
            _, status, usage = os.wait4(child, 0)
            answer: dict[str, Any] = {
                "code": os.waitstatus_to_exitcode(status),
                "peak": usage.ru_maxrss * 1024,
                "seconds": time.monotonic() - started,
            }
            for name, file in (("out", out), ("err", err)):
                file.seek(0)
                answer[name] = file.read(1_000_000).decode(errors="surrogateescape")
        print(json.dumps(answer), flush=True)


def run(request: dict[str, Any], out: int, err: int) -> NoReturn:
    """The child: the command, and then the end of the process."""
    code = 1
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for old, new in ((silence, 0), (out, 1), (err, 2)):
            os.dup2(old, new)
        os.chdir(request["cwd"])
        # Nothing asks twice: the alarm ends the process wherever it is, as no handler is set.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(request["seconds"])
        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + request["memory"],) * 2)
        sys.argv[:] = [
            "lockadapt",
            *(os.fsdecode(argument.encode(errors="surrogateescape")) for argument in request["arguments"]),
        ]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Nothing of the parent's must be run again: its buffers, its exit handlers.
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    serve()
