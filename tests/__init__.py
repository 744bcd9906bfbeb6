"""Tests of lockadapt. They run on the CPU, whose numbers are the same everywhere; `make test-gpu` runs some on the GPU."""

import os

ON_GPU = "LOCKADAPT_GPU" in os.environ
if not ON_GPU:
    # Before anything imports torch, which looks once.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
