"""Trainings on several processes: forks of one process that has imported everything, each a rank, meeting by gloo.

    python ranks.py JOBS.json         the script of a fork; see `run_jobs`

A job is {"arguments": of `lockadapt`, "processes": how many, "hook": "module:function" or null, "environment",
"killed"}. The hook is called on every rank before the command, with the rank.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from tests.support.warm import Warm

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """One call of the command line on several processes.

    Attributes:
        arguments: of `lockadapt`.
        processes: how many.
        hook: `module:function`, called on every rank with its number, before the command.
        environment: further variables, as a launcher sets them.
        killed: rank, and the optimiser step in which it gets SIGKILL.
    """

    arguments: Sequence[str]
    processes: int = 2
    hook: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    killed: Sequence[int] | None = None


@dataclass(frozen=True)
class Outcome:
    """How it ended: exit codes in the order in which the ranks ended, and all that they said on stderr."""

    codes: Sequence[tuple[int, int]]
    stderr: str

    @property
    def first(self) -> int:
        """Exit code of the rank that ended first."""
        return self.codes[0][1]


def run_jobs(warm: Warm, folder: Path, jobs: Sequence[Job]) -> list[Outcome]:
    """Runs jobs one after the other, in forks of one process.

    Args:
        warm: the process.
        folder: for the jobs and what they said.
        jobs: in order.

    Returns:
        How each ended.
    """
    file = folder / "jobs.json"
    file.write_text(json.dumps([asdict(job) for job in jobs]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    code, stderr = warm([str(Path(__file__)), str(file)], folder, environment)
    assert code == 0, stderr
    return [Outcome(**outcome) for outcome in json.loads((folder / "outcomes.json").read_text())]


def _main(file: Path) -> None:
    sys.path.insert(0, str(ROOT))
    for name in ("lockadapt.cli", "lockadapt.api.steps", "lockadapt.training.loop"):
        importlib.import_module(name)
    outcomes = [asdict(run_job(Job(**job))) for job in json.loads(file.read_text())]
    file.with_name("outcomes.json").write_text(json.dumps(outcomes))


def run_job(job: Job) -> Outcome:
    """Runs a job in forks of this process, which has imported what they need."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        children = {}
        for rank in range(job.processes):
            child = os.fork()
            if child == 0:
                _rank(rank, port, job, errors.fileno())
            children[child] = rank
        codes = []
        while children:
            ended, status = os.wait()
            codes.append((children.pop(ended), os.waitstatus_to_exitcode(status)))
            if codes[0][1]:  # as a launcher does
                for child in children:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGTERM)
        errors.seek(0)
        return Outcome(codes, errors.read())


def _rank(rank: int, port: int, job: Job, errors: int) -> NoReturn:
    os.dup2(errors, 2)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(job.processes),
        LOCAL_WORLD_SIZE=str(job.processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        **job.environment,
    )
    from accelerate.state import PartialState

    from lockadapt.cli import main

    PartialState._reset_state()  # a training in the parent has left one that works alone
    code = 1
    try:
        if job.hook is not None:
            module, name = job.hook.split(":")
            getattr(importlib.import_module(module), name)(rank)
        if job.killed is not None and job.killed[0] == rank:
            _kill_in_step(job.killed[1])
        sys.argv[:] = ["lockadapt", *job.arguments]
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _kill_in_step(step: int) -> None:
    """This process ends behind the backward pass of a step, before the optimiser moves."""
    from lockadapt.training.trainer import GroundingTrainer

    honest = GroundingTrainer.training_step

    def killed(self: GroundingTrainer, *given: Any, **named: Any) -> Any:
        loss = honest(self, *given, **named)
        if self.state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    GroundingTrainer.training_step = killed  # type: ignore[method-assign]


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
