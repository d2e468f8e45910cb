"""`train.py sweep`: a search for the best options over many runs of `fit`, by Optuna."""
