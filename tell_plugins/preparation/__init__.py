"""Making data ready: downloads, rebuilds, cards for own tasks."""
