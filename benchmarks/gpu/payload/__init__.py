"""vLLM for a GPU machine without network, in one archive small enough to travel with the repository."""
