"""How the weights of smol-llava that coremat ships were trained: a tower, a projector and low-rank updates."""
