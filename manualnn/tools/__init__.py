"""What looks at models and layers: checks, ledgers of what is saved, explanations, exports."""
