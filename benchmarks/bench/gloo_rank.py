"""Runs a script as one of several ranks that may share one GPU: `gloo_rank.py SCRIPT WORDS...`.

NCCL refuses two ranks on one GPU, gloo does not. Accelerate takes a process group that is there
already, and with LOCAL_RANK 0 in every rank all of them use the first device.
"""

import runpy
import sys

import torch

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
