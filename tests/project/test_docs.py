"""The documentation builds strictly, shows every op, and asks nothing of anybody."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

from manualnn import Activation, Function, functional, nn, ops

ROOT = Path(__file__).parents[2]
# Functions that only serve others: no op of their own.
INTERNAL = {"Total", "Placeholder", "PointwiseLoss"}


@pytest.fixture(scope="module")
def site(tmp_path_factory, worker_id):
    """The site, built by the first of pytest's processes that asks for it."""
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "site"
    with FileLock(f"{folder}.lock"):
        if not (folder / "built").exists():
            build(folder)
            (folder / "built").touch()
    return folder


def build(folder):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)


@pytest.fixture(scope="module")
def pages(site):
    return {p.relative_to(site).as_posix(): p.read_text() for p in site.rglob("*.html")}


@pytest.fixture(scope="module")
def ops_pages(pages):
    return "\n".join(text for name, text in pages.items() if re.match(r"ops/(?!index)", name))


def hand_written():
    for info in pkgutil.walk_packages(ops.__path__, "manualnn.ops."):
        module = importlib.import_module(info.name)
        for name, cls in vars(module).items():
            if inspect.isclass(cls) and issubclass(cls, Function) and cls.__module__ == info.name:
                if name not in INTERNAL and not name.startswith("_"):
                    yield cls


def test_every_op_has_its_section(ops_pages):
    for cls in hand_written():
        assert f'<h2 id="{cls.__name__}">' in ops_pages, cls


def test_every_activation_has_its_plot(ops_pages):
    for cls in hand_written():
        if issubclass(cls, Activation):
            section = ops_pages.partition(f'<h2 id="{cls.__name__}">')[2].partition("<h2 ")[0]
            assert section.count("<svg") == 1 and "g′(z)" in section, cls


def test_every_public_function_and_module_is_named(ops_pages):
    for name in functional.__all__:
        assert f">functional.{name}<" in ops_pages, name
    ours = [
        name
        for name, cls in vars(nn).items()
        if inspect.isclass(cls)
        and issubclass(cls, torch.nn.Module)
        and cls.__module__.startswith("manualnn.")
    ]
    assert len(ours) > 60
    for name in ours:
        assert f">nn.{name}<" in ops_pages, name


def test_nothing_is_left_of_a_directive(pages):
    for name, text in pages.items():
        assert not re.search(r"\{\{ \w+[^{}]* \}\}", text), name


def test_nothing_is_fetched_from_elsewhere(site, pages):
    """No fonts, scripts, styles or pictures but the site's own."""
    assert len(pages) > 20
    for name, text in pages.items():
        fetched = re.findall(r'<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)="([^"]*)"', text)
        assert fetched and not [f for f in fetched if re.match(r"(https?:)?//", f)], name
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text()), style


def test_pages_that_the_hooks_fill_say_what_the_code_says(pages):
    """A figure, a formula and a definition, from three of the sources."""
    equations = re.sub("<[^>]*>", "", pages["equations.html"])
    assert "dA_prev = W.T @ dZ" in equations
    assert "xhat = (x − mu) rstd" in pages["ops/normalisation.html"]
    for table in ("memory.html", "benchmarks.html"):
        assert "densenet121" in pages[table] and "geometric mean" in pages[table]


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("{{ code manualnn/equations/__init__.py:no_such }}", "defines no no_such"),
        ("{{ nothing }}", "no directive has that name"),
        ("{{ root NO_SUCH.md }}", "No such file"),
        ("{{ line manualnn/equations/__init__.py:cost nowhere }}", "0 lines with 'nowhere'"),
        ("{{ ops manualnn.ops.nowhere }}", "no ops in manualnn.ops.nowhere"),
    ],
)
def test_a_page_that_asks_for_what_is_not_there_is_refused(directive, message):
    from types import SimpleNamespace

    from mkdocs.config import load_config
    from mkdocs.exceptions import PluginError

    hook = load_config(str(ROOT / "mkdocs.yml")).hooks["docs/hook.py"]
    page = SimpleNamespace(file=SimpleNamespace(src_uri="some.md"))
    with pytest.raises(PluginError, match=message):
        hook.on_page_markdown(directive, page, None, None)
