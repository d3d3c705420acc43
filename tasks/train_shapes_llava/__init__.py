"""How the bundled model was made: architecture and tokenizer, training data, the training loop."""
