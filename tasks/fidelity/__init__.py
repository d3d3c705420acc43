"""How near methods are to the dense model, question by question: what is asked, the run, its rows."""
