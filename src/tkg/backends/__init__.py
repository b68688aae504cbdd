"""The ways to run a call, one package each; `registry` lists them."""
