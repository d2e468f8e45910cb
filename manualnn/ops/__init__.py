"""The mathematics: one file a family, each Function its formula, its gradients and what it saves."""
