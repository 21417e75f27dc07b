"""How a block of changes becomes bytes: each encoding, and the one table of their names."""
