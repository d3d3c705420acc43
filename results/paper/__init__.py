"""The paper's tables as data (CSV), and ours beside them."""
