"""Triton kernels over half blocks, each with a torch reference of the same signature in `reference.py`.

Symbols in the docstrings of this folder:

    N   physical blocks of a layer's cache        bs  tokens per block, physical or half
    R   half blocks per physical block            w   elements per token of a half block (H, or 2*nkv*hd in fp8)
    T   tokens of this step                       B   rows of the batch (padding rows included)
    S_b cached tokens of row b, this step's too   W   columns of the block table
    H   hidden size                               nh, nkv, hd  query heads, KV heads, head size

A row is of the half form if and only if its first block id is >= N: the rest of the row may be stale. Rows of the other
form are never read and never written. Offsets into the cache are 64 bit, all sums and the softmax fp32.
"""
