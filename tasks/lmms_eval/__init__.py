"""Where coremat meets lmms-eval: the model class that it runs, its tasks as they are loaded, its output kept quiet."""
