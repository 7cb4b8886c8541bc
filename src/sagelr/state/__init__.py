"""How an optimizer's state is made, saved and loaded."""
