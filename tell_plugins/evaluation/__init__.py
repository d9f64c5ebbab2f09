"""Answers first, scores later: prompts, engines, saved answers, scorers."""
