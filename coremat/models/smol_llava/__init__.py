"""smol-llava: what coremat ships of it, and how it is put together around SmolLM2; README.md here is its card."""
