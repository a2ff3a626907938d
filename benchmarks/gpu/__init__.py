"""Evidence from a GPU: correctness, seconds and memory of every family at real size, in minutes."""
