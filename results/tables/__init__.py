"""Records as tables: rows and columns, and their layout in a terminal, markdown, CSV and LaTeX."""
