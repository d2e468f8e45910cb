"""Kernels are built at first use and kept; where that fails ATen serves, and nobody is told more than once."""

import os
import stat
import subprocess
import sys
import warnings

import pytest
import torch
from kernel_cases import CASES, by_aten, by_kernel, here, switched_off

from manualnn import functional as F
from manualnn import nn
from manualnn.autograd import blockwise
from manualnn.kernels import batch_norm, build, chains, masks, running
from manualnn.kernels.trust import same_bits

CASE = CASES["Softsign-g_prime"]


@pytest.fixture
def tensors():
    return CASE.values(torch.float32, 3000)


def served_by_aten(tensors):
    """What comes out, and it was no kernel that gave it."""
    with torch.no_grad():
        assert running.run(blockwise._once, CASE.formula, tensors, (), 3000) is None
        out = CASE.run(*tensors)
    return same_bits(out, by_aten(CASE, *tensors))


def as_if_new(monkeypatch):
    monkeypatch.setattr(running, "_kernels", {})


def files(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def test_a_file_is_kept_and_used_again(anew, tensors, monkeypatch):
    by_kernel(CASE, *tensors)
    (name,) = files(anew)
    assert stat.S_IMODE(anew.stat().st_mode) == 0o700
    as_if_new(monkeypatch)
    monkeypatch.setattr(build, "_compile", None)  # would fail if it were called
    by_kernel(CASE, *tensors)
    assert files(anew) == [name]


GLOBAL = """
import os, sys
sys.setdlopenflags(os.RTLD_GLOBAL | os.RTLD_NOW)
import torch
from manualnn.autograd.blockwise import evaluate
from manualnn.kernels import running

def formula(z):
    return z * torch.exp(z) + torch.expm1(z)

z = torch.randn(40_000)
with torch.no_grad():
    found = evaluate(formula, z)
    assert any(running._kernels.values()) is (sys.argv[1] == "True")
    running.enabled = False
    assert torch.equal(found, evaluate(formula, z))
"""


def test_names_of_torchs_library_may_be_global(cache):
    """A name of the kernel's would otherwise be the library's function, which would be called in its place."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "MANUALNN_KERNELS": "on"}
    command = [sys.executable, "-c", GLOBAL, str(here())]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_the_name_tells_all_that_matters(anew, tensors, monkeypatch):
    by_kernel(CASE, *tensors)
    for what, other in (
        ("FLAGS", [*build.FLAGS, "-DOTHER"]),
        ("_version", lambda compiler: "another"),
        ("_processor", lambda: "another"),
    ):
        before = files(anew)
        as_if_new(monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(build, what, other)
            by_kernel(CASE, *tensors)
        assert len(files(anew)) == len(before) + 1, what


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "nonsense"])
def test_a_damaged_file_is_made_again(anew, tensors, monkeypatch, damage):
    by_kernel(CASE, *tensors)
    (name,) = files(anew)
    whole = (anew / name).read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    damaged = {"cut": whole[:middle], "empty": b"", "changed": changed, "nonsense": b"x" * 999}[
        damage
    ]
    (anew / name).unlink()  # it is mapped into this process
    (anew / name).write_bytes(damaged)
    as_if_new(monkeypatch)
    assert same_bits(by_kernel(CASE, *tensors), by_aten(CASE, *tensors))
    assert build._whole(anew / name)


def test_no_compiler(anew, tensors, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert served_by_aten(tensors)


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        'case "$1" in --version) echo 1;; *) echo nonsense > kernel.so;; esac',
        "kill -9 $$",
    ],
)
def test_a_compiler_that_fails(anew, tensors, monkeypatch, tmp_path, script):
    fake = tmp_path / "gcc"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CC", str(fake))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert served_by_aten(tensors)
        as_if_new(monkeypatch)
        assert served_by_aten(tensors)
    assert len(told) == 1 and "PyTorch's own passes serve" in str(told[0].message)


def test_a_compiler_that_never_ends(anew, tensors, monkeypatch, tmp_path):
    fake = tmp_path / "gcc"
    fake.write_text('#!/bin/sh\ncase "$1" in --version) echo 1;; *) exec sleep 60;; esac\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CC", str(fake))
    monkeypatch.setattr(build, "SECONDS", 0.2)
    with pytest.warns(RuntimeWarning, match="own passes"):
        assert served_by_aten(tensors)


def test_a_folder_that_cannot_be_made(anew, tensors, tmp_path):
    (tmp_path / "own").write_text("a file, where the folder would be")
    by_kernel(CASE, *tensors)
    assert len(files(tmp_path / "temporary")) == 1


@pytest.mark.parametrize("temporary", [True, False])
def test_a_read_only_folder_or_a_full_disk(anew, tensors, monkeypatch, tmp_path, temporary):
    """temporary: it is the user's folder alone. Root may write anywhere, so the answer is forged."""
    made = build.tempfile.mkstemp

    def refuse(suffix=None, prefix=None, dir=None, text=False):
        if temporary and "own" not in str(dir):
            return made(suffix, prefix, dir, text)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.tempfile, "mkstemp", refuse)
    if temporary:
        by_kernel(CASE, *tensors)
        assert len(files(tmp_path / "temporary")) == 1
    else:
        with pytest.warns(RuntimeWarning, match="No space left"):
            assert served_by_aten(tensors)
    assert files(anew) == []


@pytest.mark.parametrize("what", ["others may write", "others may read", "a link", "another's"])
def test_a_folder_that_is_not_the_users_alone(anew, tensors, monkeypatch, tmp_path, what):
    anew.mkdir(parents=True, mode=0o700)
    if what == "a link":
        anew.rmdir()
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        anew.symlink_to(tmp_path / "elsewhere")
    elif what == "another's":
        monkeypatch.setattr(build.os, "getuid", lambda: os.geteuid() + 1)
    else:
        anew.chmod(0o722 if what == "others may write" else 0o744)
    by_kernel(CASE, *tensors)
    assert files(anew) == []


def test_switched_off(anew, tensors):
    with switched_off():
        assert served_by_aten(tensors)
    assert files(anew) == []
    by_kernel(CASE, *tensors)


def test_processes_at_once(anew, tensors):
    """Each finds no file, and makes it; one of them is kept, whole."""
    ready, go = os.pipe()
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            status = 1
            try:
                os.close(go)
                os.read(ready, 1)  # until the parent lets go
                status = int(not same_bits(by_kernel(CASE, *tensors), by_aten(CASE, *tensors)))
            finally:
                os._exit(status)
        children.append(child)
    os.close(go)
    os.close(ready)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    (name,) = files(anew)
    assert build._whole(anew / name)


def test_a_compiler_that_leaves_a_function_out(anew, monkeypatch, tmp_path):
    """Whatever it has written, ATen serves, and nothing raises."""
    compiler = build._compiler()
    if compiler is None:
        pytest.skip("no C compiler")
    false = tmp_path / "false_cc"
    source = tmp_path / "nothing.c"
    source.write_text("int nothing(void) { return 1; }")
    false.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo false 1; exit 0; fi\n'
        'while [ $# -gt 0 ]; do if [ "$1" = -o ]; then out=$2; fi; shift; done\n'
        f'exec {compiler} -shared -fPIC {source} -o "$out"\n'
    )
    false.chmod(0o755)
    monkeypatch.setenv("CC", str(false))
    for kernels in (batch_norm, masks):
        monkeypatch.setattr(kernels, "_loaded", kernels._loaded.__wrapped__)
    monkeypatch.setattr(chains, "_kernels", {})
    x = torch.randn(3, 5, 40, 40, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="leaves out"):
        y = torch.nn.functional.conv2d(x, torch.ones(5, 5, 1, 1))
        (nn.Dropout(0.3)(F.softsign(nn.BatchNorm2d(5)(y)))).sum().backward()
    link = chains.Link(torch.mul, (chains.Link(torch.add, ("each", "each")), "each"))
    assert chains.run(link, [x.detach()] * 3) is None
    assert x.grad is not None
