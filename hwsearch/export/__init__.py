"""Students in forms that other programs load."""
