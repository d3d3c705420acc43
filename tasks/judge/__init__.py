"""Tasks that a model grades: the client, the scoring that asks it, and a guard where nobody is asked."""
