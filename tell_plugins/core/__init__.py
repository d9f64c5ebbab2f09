"""The data core: card + dataset string -> rows -> mixture -> manifest. No torch, no swift.

The method stands in nine modules, best read in this order: `spec` and `cards` (what is asked for),
`rows`, `sources` and `anchors` (valid rows, those of a task behind their anchor), `tokens` and
`draw` (which rows an amount takes), `order`, and `mixture`, which puts them together. All others
read and write files, or say what is wrong.
"""
