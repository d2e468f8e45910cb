"""`train.py compare`: `fit` with several values of an option, with several seeds each."""
