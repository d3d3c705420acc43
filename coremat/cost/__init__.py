"""What a method costs: tokens, operations and bytes, counted from shapes before anything runs."""
