"""Right but unusual functions, which a careless checker would accuse.

RIGHT: list of catalogue.Entry. check must find nothing wrong with any (it may find "not supported").
"""

from functions_right import (
    attributes,
    complexes,
    forms,
    initial,
    integers,
    kinks,
    meetings,
    modules,
    numbers,
    randomness,
    roundings,
    special,
)

RIGHT = [
    entry
    for subject in (
        kinks,
        meetings,
        forms,
        initial,
        integers,
        numbers,
        modules,
        randomness,
        roundings,
        complexes,
        attributes,
        special,
    )
    for entry in subject.ENTRIES
]
