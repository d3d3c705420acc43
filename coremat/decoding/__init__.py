"""Greedy decoding by one step that is the same for every prompt, called as it is or captured as a CUDA graph."""
