"""One module for each command; cli.py imports the one that was called."""
