"""Renting one machine and giving it back: local, ssh, the paid clouds; the journal of what was rented."""
