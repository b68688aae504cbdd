"""The named cases, their inputs, and what error each may have.

Tests, benchmarks and `tkg verify` share them. Nothing here is needed to run a model.
"""
