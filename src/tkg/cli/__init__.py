"""The `tkg` command: one file a subcommand. Needs `pip install 'tkg[run]'`."""
