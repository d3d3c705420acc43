"""Records as PNG plots."""
