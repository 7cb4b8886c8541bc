"""Reading text that has labels, and turning it into tokens."""
