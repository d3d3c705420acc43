"""The paper's tables as presets of tasks and methods."""
