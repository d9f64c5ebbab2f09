"""How fast mixtures are built, tokens counted and trainings started, beside ms-swift's own loader.

`./run.sh bench` runs it. Everything is measured in processes of its own, the two sides by turns,
and compared by ratios of one run: absolute times say more about the machine.
"""
