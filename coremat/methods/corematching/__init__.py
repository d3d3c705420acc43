"""CoreMatching, the paper's own method: core neurons, core tokens, and the ablations of its choices."""
