"""A process that has imported what proofs import, and no lockadapt. For each request it forks, and the child is the proof.

    python warm_process.py            requests and answers are lines of JSON on stdin and stdout

A request is {"arguments": [script, …], "cwd": …, "environment": {…}}, its answer {"returncode": …, "stderr": …}.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
import tempfile
import traceback
from typing import Any, NoReturn

# Some packages print while they are imported (wandb): answers have a stream of their own.
ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

import torch  # noqa: E402

import torchvision_operators  # noqa: F401, E402  # isort: skip  # beside this script; before Transformers
import peft  # noqa: F401, E402
import transformers  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: F401, E402

with contextlib.suppress(ImportError):
    import sentence_transformers  # noqa: F401

FOUND = list(sys.path)


def serve() -> None:
    """Until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
            child = os.fork()
            if child == 0:
                run(request, errors.fileno())
            _, status = os.waitpid(child, 0)
            errors.seek(0)
            answer = {"returncode": os.waitstatus_to_exitcode(status), "stderr": errors.read()}
        print(json.dumps(answer), file=ANSWERS, flush=True)


def run(request: dict[str, Any], errors: int) -> NoReturn:
    """The child: the script, as `python script …` runs it, and then the end of the process."""
    code = 1
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for old, new in ((silence, 0), (silence, 1), (errors, 2)):
            os.dup2(old, new)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        script = request["arguments"][0]
        sys.argv[:] = request["arguments"]
        sys.path[:] = [os.path.dirname(script), *FOUND[1:]]
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Nothing of the parent's must be run again: its buffers, its exit handlers.
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    serve()
