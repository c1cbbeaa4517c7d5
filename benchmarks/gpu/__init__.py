"""What only a GPU can show, packed so that its first minutes already pay."""
