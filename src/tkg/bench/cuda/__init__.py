"""`tkg bench --backend cuda`, or `python -m tkg.bench.cuda` where typer and rich are not installed.

docs/cuda.md says how each figure is made.
"""
