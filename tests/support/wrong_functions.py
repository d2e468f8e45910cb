"""Wrong functions, each of a kind that people write or that a project has shipped.

WRONG: list of catalogue.Entry. check must not pass any, and must say in plain words what is wrong.
"""

from functions_wrong import (
    attributes,
    complexes,
    elements,
    elsewhere,
    formula,
    incoming,
    initial,
    integers,
    modules,
    numerics,
    orders,
    roundings,
    shapes,
    special,
    state,
    wiring,
)

SUBJECTS = (
    incoming,
    initial,
    integers,
    state,
    wiring,
    shapes,
    formula,
    elements,
    elsewhere,
    special,
    numerics,
    orders,
    modules,
    roundings,
    complexes,
    attributes,
)
WRONG = [entry for subject in SUBJECTS for entry in subject.ENTRIES]
