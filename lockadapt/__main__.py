"""`python -m lockadapt`, which is also what `torchrun -m lockadapt` and `--processes` start."""

from __future__ import annotations

from lockadapt.cli import main

if __name__ == "__main__":
    main()
