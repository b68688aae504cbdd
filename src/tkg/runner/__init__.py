"""A small language model end to end: weights, tokenizer, cache, model, sampler.

It stands on `tkg`'s public names, as a user's program would. Needs `pip install 'tkg[run]'`.
"""
