"""The measured runs under `results/reference`: `make reference` and `make bench`."""
