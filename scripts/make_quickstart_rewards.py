"""Writes the data of recipes/quickstart-dpo.yaml and quickstart-grpo.yaml: scenes, questions, wrong answers.

    python scripts/make_quickstart_rewards.py data/quickstart-rewards

Preferences of a run's own wrong answers: scripts/make_preferences.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lockadapt.quickstart.hard import make_hard
from lockadapt.quickstart.preferences import make_preferences
from lockadapt.quickstart.scenes import make_dataset


def main() -> None:
    """Write into the folder that is named on the command line."""
    parser = argparse.ArgumentParser(description="Draw scenes with questions and wrong answers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_dataset(arguments.folder, arguments.seed, train=2000, test=200)
    make_preferences(arguments.folder, arguments.seed)
    make_hard(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
