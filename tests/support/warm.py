"""Proofs of tests run in forks of one process that has imported torch and Transformers: a second instead of eight each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = Path(__file__).with_name("warm_process.py")


class Warm:
    """Takes the place of `lockadapt.models.proof.run_python`."""

    def __init__(self) -> None:
        self.server: subprocess.Popen[str] | None = None

    def __call__(
        self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]
    ) -> tuple[int, str]:
        """Exit code and stderr of `python arguments…`."""
        if self.server is None or self.server.poll() is not None:
            self.server = subprocess.Popen(
                [sys.executable, str(SERVER)],
                # What libraries read while they are imported must be so before; the rest comes with each request.
                env={**environment, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        request = {"arguments": list(arguments), "cwd": str(cwd), "environment": dict(environment)}
        print(json.dumps(request), file=self.server.stdin, flush=True)
        answer = json.loads(self.server.stdout.readline())
        return answer["returncode"], answer["stderr"]

    def close(self) -> None:
        """Ends the process."""
        if self.server is not None:
            self.server.kill()
            self.server.wait()
