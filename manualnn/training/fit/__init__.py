"""The command line of one run: `fit`, `validate`, `test` and `predict`."""
