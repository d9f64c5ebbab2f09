"""TELL recipes for ms-swift: anchor prompts, extensive mixtures, honest scores.

`core` holds the data path and imports neither torch nor swift; `bridge` is the only module that
knows ms-swift; `recipe`, `preparation`, `evaluation` and `experiments` stand on top of them.
"""

__version__ = "0.1.0"
