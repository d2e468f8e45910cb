"""Random programs around converted models, by seed: drawn, run, compared with torch's, made small, printed.

A program is a model of torch's layers and calls, and a script of what is done with it: several calls, graphs
that live at once, state that changes between and within calls. The converted model must give what the
unconverted one gives. ``python tests/support/fuzz.py --seeds 0:1000`` runs a thousand; a failure is printed
as a short Python script of its own.
"""
