"""How questions, images and videos are put before a model."""
