"""Budgets that methods have where nothing is typed."""

NINTH = 0.1112  # of the image tokens, rounded up in the last place: 64 of LLaVA-1.5's 576
