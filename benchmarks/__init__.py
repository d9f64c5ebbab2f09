"""How fast mixtures are built, tokens counted, trainings started and prompts answered.

`./run.sh bench` runs it. Everything is measured in processes of its own, the two sides by turns,
and compared by ratios of one run: absolute times say more about the machine.
"""
