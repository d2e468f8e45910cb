"""``import manualnn`` brings torch and nothing heavier."""

import os
import subprocess
import sys


def brought(*statements, **environment):
    """What each statement imports that those before it did not, in a process of their own."""
    program = "import sys\n" + "".join(f"{s}\nprint(*sys.modules)\n" for s in statements)
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    after = [set(line.split()) for line in run.stdout.splitlines()]
    return [new - old for new, old in zip(after, [set(), *after], strict=False)]


def test_nothing_beyond_torch_and_the_layers_do_not_know_the_training(tmp_path):
    torchs, ours, layers = brought(
        "import torch",
        "import manualnn",
        "import manualnn.nn, manualnn.functional, manualnn.equations",
        XDG_CACHE_HOME=str(tmp_path),
    )
    known = sys.stdlib_module_names | {name.partition(".")[0] for name in torchs}
    assert {name.partition(".")[0] for name in ours} - known == {"manualnn"}
    assert not [name for name in ours | layers if name.startswith("manualnn.training")]
    assert not list(tmp_path.iterdir())  # no kernel is built
