"""Without an NVIDIA GPU, Triton kernels run in Triton's interpreter. Set before it is imported."""

import os
import shutil

if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
