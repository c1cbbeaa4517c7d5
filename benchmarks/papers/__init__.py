"""What the paper benchmarks are made of: runs, published figures, checks."""
