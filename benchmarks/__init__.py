"""What produced each figure this project states; every module here runs as `python -m benchmarks.<name>`."""
