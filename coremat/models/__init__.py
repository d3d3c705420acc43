"""Model families, one adapter each, in a file named after Hugging Face's `model_type`: `families` has them all, `known`
the models that have a name, `load` makes a model of what a user types.
"""
