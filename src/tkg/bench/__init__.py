"""`tkg bench`: the block beside what a user could take instead, in one run, on this machine.

Every answer is checked before its time is taken. docs/performance.md says how each figure is made.
"""
