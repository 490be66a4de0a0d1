"""The jump stage (being written)."""
