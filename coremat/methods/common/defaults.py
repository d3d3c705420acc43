"""Budgets that methods have where nothing is typed."""

NINTH = 0.1111  # of the image tokens: 64 of LLaVA-1.5's 576
