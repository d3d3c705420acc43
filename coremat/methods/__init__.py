"""Pruning methods, one file each, found by name in `registry`; `base` says what a method is."""
