"""Recipes: reading the YAML, checking it, planning its steps, starting the training."""
