"""Writes scenes of coloured shapes with the box of each thing, rows for the objective `grounding`.

python scripts/make_quickstart_boxes.py data/quickstart-boxes
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lockadapt.quickstart.boxes import make_boxes


def main() -> None:
    """Draw the scenes into the folder that is named on the command line."""
    parser = argparse.ArgumentParser(description="Draw scenes with boxes.")
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--train", type=int, default=6000, help="scenes to train on")
    parser.add_argument("--test", type=int, default=300, help="scenes to evaluate with")
    arguments = parser.parse_args()
    make_boxes(arguments.folder, train=arguments.train, test=arguments.test)


if __name__ == "__main__":
    main()
