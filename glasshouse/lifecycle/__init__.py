"""The controller's side of a run, step by step; glasshouse/run.py tells the story."""
