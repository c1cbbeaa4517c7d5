"""Without a GPU Triton's kernels run in its interpreter, which must be chosen before anything imports Triton.

vLLM's CPU build uses no Triton, so nothing else sees the difference.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
