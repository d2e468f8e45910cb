"""Right but unusual functions, which a careless checker would accuse.

RIGHT: list of catalogue.Entry. check must find nothing wrong with any (it may find "not supported").
"""

from functions_right import forms, initial, integers, kinks, modules, numbers, randomness, special

RIGHT = [
    entry
    for subject in (kinks, forms, initial, integers, numbers, modules, randomness, special)
    for entry in subject.ENTRIES
]
