"""Mathematics that several methods share, as functions on plain tensors."""
