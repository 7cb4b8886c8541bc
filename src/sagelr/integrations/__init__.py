"""One thin file for each framework that users come from. Nothing here is imported by the rest."""
