"""`train.py`: which command the arguments name, and its exit status."""
