r"""Writes the data of recipes/quickstart-dpo.yaml and quickstart-grpo.yaml: scenes, questions, wrong answers.

    python scripts/make_quickstart_rewards.py data/quickstart-rewards

With a run that answered `hard_train.jsonl`, the rejected answers are its wrong ones:

    lockadapt eval runs/sft objectives.vqa.test.path=data/quickstart-rewards/hard_train.jsonl \
        --predictions wrong.jsonl
    python scripts/make_quickstart_rewards.py data/quickstart-rewards --wrong wrong.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lockadapt.quickstart.hard import make_hard
from lockadapt.quickstart.preferences import make_preferences
from lockadapt.quickstart.scenes import make_dataset, write_lines


def main() -> None:
    """Write into the folder that is named on the command line."""
    parser = argparse.ArgumentParser(description="Draw scenes with questions and wrong answers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wrong", type=Path, help="predictions of a run for hard_train.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.wrong is not None:
        from_answers(arguments.folder, arguments.wrong)
        return
    make_dataset(arguments.folder, arguments.seed, train=2000, test=200)
    make_preferences(arguments.folder, arguments.seed)
    make_hard(arguments.folder, arguments.seed)


def from_answers(folder: Path, predictions: Path) -> None:
    """Write `wrong_train.jsonl`: rows that a run answered wrongly, its answers rejected."""
    rows = [json.loads(line) for line in (folder / "hard_train.jsonl").read_text().splitlines()]
    answered = [json.loads(line) for line in predictions.read_text().splitlines()]
    pairs = [
        {**row, "rejected": given["answer"]}
        for row, given in zip(rows, answered, strict=True)
        if given["answer"].strip() and given["answer"] != row["answer"]
    ]
    write_lines(folder / "wrong_train.jsonl", pairs)


if __name__ == "__main__":
    main()
