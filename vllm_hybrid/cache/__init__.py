"""Half blocks: a second form of a request's cache that takes half the memory, beside KV in the same blocks.

A physical block p of N holds R half blocks with the virtual ids N + R*p + j. vLLM computes slots from block ids without
looking at them, so an id of N or more travels through an unmodified engine, and `id >= N` tells the form wherever a
block table is read. A half block holds either the hidden state x of each token (exact where K and V are affine in x) or
its K and V in fp8 (lossy).
"""
