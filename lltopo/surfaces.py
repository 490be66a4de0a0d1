"""The surface stage (being written)."""
