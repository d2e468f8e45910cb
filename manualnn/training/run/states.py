"""Which callback of a run takes which state in a checkpoint, where a setting of the callback has changed.

Lightning finds a state by a name that some settings are part of, such as ModelCheckpoint's monitor and
every_n_epochs, and passes over what it does not find: the best epoch so far, or the patience that was used up,
would be forgotten without a word.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from manualnn.training.errors import TrainingError

# They say when a callback looks, not what it looks for.
_WHEN = ("every_n_epochs", "every_n_train_steps", "train_time_interval")


def hand_over(
    callbacks: Sequence[Callback], states: dict[str, Any], say: Callable[[str], None], own: str
) -> None:
    """Gives each state in `states` the name under which a callback of this run will look for it.

    Args:
        callbacks: This run's.
        states: The checkpoint's, by the callbacks' names of then; it is changed.
        say: Takes a line for the person: of a state that nobody takes, of a callback that begins anew.
        own: The class of the callback whose options are --checkpoint.

    Raises:
        TrainingError: a callback waits for something else than it did in the run.
    """
    left = {key: _read(key) for key in states.keys() - {c.state_key for c in callbacks}}
    new = [c for c in callbacks if c.state_key not in states and _has_state(c)]
    for callback in [*new]:
        kind, ours = _read(callback.state_key)
        if not isinstance(callback, (ModelCheckpoint, EarlyStopping)):
            continue
        alike = [key for key, (name, _) in left.items() if name == kind]
        same = [key for key in alike if _without(left[key][1]) == _without(ours)]
        if same:
            states[callback.state_key] = states.pop(same[0])
            del left[same[0]]
            new.remove(callback)
        elif alike:
            raise TrainingError(_another(kind, left[alike[0]][1], ours, own))
    for key in left:
        say(f"note: the checkpoint holds a state of {_told(key)}, and nothing in this run takes it")
    for callback in new:
        if not type(callback).__module__.startswith("manualnn."):
            name = _told(callback.state_key)
            say(f"note: {name} begins anew: the checkpoint holds no state of it")


def _has_state(callback: Callback) -> bool:
    try:
        return bool(callback.state_dict())
    except Exception:  # of a person's own, which a step will give what it lacks
        return False


def _read(key: str) -> tuple[str, dict[str, str]]:
    """ "EarlyStopping{'monitor': 'val/loss', 'mode': 'min'}" -> its class and its settings, as text."""
    kind, _, settings = str(key).partition("{")
    return kind, dict(re.findall(r"'(\w+)': ('[^']*'|[^,}]*)", settings))


def _without(settings: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name not in _WHEN}


def _another(kind: str, there: dict[str, str], here: dict[str, str], own: str) -> str:
    options = "--checkpoint" if kind == own else kind
    if kind == own and "None" in (here["monitor"], there["monitor"]):
        found = ("none", "some") if here["monitor"] == "None" else ("some", "none")
        changed = "of validation there is {} here, and there was {} in the run".format(*found)
    else:
        changed = "; ".join(
            f"{options}.{name} is {here[name]} here and {there.get(name)} in the run".replace(
                "'", ""
            )
            for name in here
            if name not in _WHEN and here[name] != there.get(name)
        )
    return (
        f"{changed}. It would be another run, whose best is another: leave it as it was, or start a new "
        "run without --ckpt_path"
    )


def _told(key: str) -> str:
    """ "EarlyStopping (val/loss)"."""
    kind, settings = _read(key)
    monitor = settings.get("monitor", "None").strip("'")
    return kind if monitor == "None" else f"{kind} ({monitor})"
