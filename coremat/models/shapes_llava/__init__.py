"""The weights, tokenizer and processor of the model that ships with coremat; README.md here is its card."""
