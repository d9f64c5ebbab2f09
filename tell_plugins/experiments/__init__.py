"""What stands on top of training and evaluation: the demo, sweeps, reports."""
