"""Tasks with their data, and those of the paper that lmms-eval lacks: an lmms-eval YAML and its `utils.py` each."""
