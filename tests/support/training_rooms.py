"""The rooms of manualnn.training: each imports those before it in this list alone, at function level too.

`data`, `model`, ... are folders; `errors`, `seeds` and `networks` are files.
"""

TRAINING_ROOMS = (
    *("errors", "text", "seeds", "networks"),
    *("data", "model", "run", "monitors", "deploy", "fit", "experiments", "cli"),
)
