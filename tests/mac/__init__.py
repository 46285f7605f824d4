"""What is at hand of a Mac: its name for itself, its two tools, and the absence of what only Linux has."""
