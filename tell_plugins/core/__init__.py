"""The data core: card + dataset string -> rows -> mixture -> manifest. No torch, no swift.

AGENTS.md says in which order its modules are best read. Those it does not name read and write
files, or say what is wrong.
"""
