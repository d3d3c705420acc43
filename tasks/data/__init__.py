"""Datasets: local copies, what is missing there, and fetching from the hub."""
