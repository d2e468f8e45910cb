"""YAML that a person names: what would never end, what is there twice, words that YAML takes for false."""

import pytest
import yaml
from command_line import SMALL, message

from manualnn.training.text.yaml_text import get_loader

TWICE = "".join(
    f"{c}: &{c} [{', '.join([f'*{b}'] * 10)}]\n" for b, c in zip("abcdefg", "bcdefgh", strict=True)
)
MERGED = "".join(
    f"{c}: &{c}\n  <<: [{', '.join([f'*{b}'] * 10)}]\n"
    for b, c in zip("abcdefg", "bcdefgh", strict=True)
)
REFUSED = {
    "itself": ("model: &m {hidden_units: *m}", "in one another too deeply, or without an end"),
    "itself, merged": ("model: &m\n  <<: *m\n", "in one another too deeply, or without an end"),
    "itself in a list": ("model: {hidden_units: &m [1, *m]}", "too deeply, or without an end"),
    "aliases": (f"a: &a [1,1,1,1,1,1,1,1,1,1]\n{TWICE}model: {{hidden_units: *h}}", "too large"),
    "merged": (f"a: &a {{x: 1}}\n{MERGED}model: *h", "too large"),
    "deep": ("model: {hidden_units: " + "[" * 150 + "]" * 150 + "}", "too deeply"),
    "very deep": ("[" * 5000, "nesting depth"),
    "twice": ("trainer: {max_epochs: 1}\ntrainer: {max_epochs: 2}", "trainer is there twice"),
    "twice inside": (
        "model: {hidden_units: [1], hidden_units: [2]}",
        "hidden_units is there twice",
    ),
}


@pytest.mark.parametrize("text, words", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("option", ["--config", "--data"])
def test_what_cannot_be_written_out_is_refused(run, tmp_path, capsys, text, words, option):
    (tmp_path / "given.yaml").write_text(text)
    assert run("fit", *SMALL, option, "given.yaml") == 2
    assert words in message(capsys) or option == "--data"


@pytest.mark.parametrize("text, words", REFUSED.values(), ids=REFUSED)
def test_a_sweep_refuses_it_too(run, tmp_path, capsys, text, words):
    (tmp_path / "given.yaml").write_text(text)
    assert run("sweep", "--config", "given.yaml") == 2
    assert words in message(capsys)


def test_aliases_that_end_are_written_out(tmp_path):
    text = "a: &a {lr: 1e-3, x: [1, 2]}\nb: *a\nc: {<<: *a, lr: 2}"
    inner = {"lr": 1e-3, "x": [1, 2]}
    assert get_loader("yaml")(text) == {"a": inner, "b": inner, "c": {**inner, "lr": 2}}
    with pytest.raises(yaml.YAMLError):
        get_loader("yaml")("&a [*a]")


WORDS = """
monitor: {every: off}
model: {convert: off, network: manualnn.training.networks.CNN}
data: {download: no, batch_size: 512}
trainer: {logger: no, enable_progress_bar: Off, max_epochs: 1, accelerator: cpu}
seed_everything: no
test_best: on
"""


def test_words_are_words_and_still_true_or_false(run, tmp_path, capsys):
    (tmp_path / "words.yaml").write_text(WORDS)
    assert run("fit", "--config", "words.yaml") == 0
    said = capsys.readouterr()
    assert "test/acc" in said.out and "Seed set" not in said.err
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "monitor: {every: on}",
            "--monitor.every True: needed is one of auto, off or a whole number",
        ),
        ("monitor: {every: true}", "--monitor.every True: needed is one of auto, off or"),
        ("model: {convert: true}", "--model.convert True: needed is one of less, all, off"),
        ("data: {dataset: no}", "no dataset is called 'no'"),
    ],
)
def test_a_word_that_is_no_value_is_one_line(run, tmp_path, capsys, text, words):
    (tmp_path / "word.yaml").write_text(text)
    assert run("fit", "--config", "word.yaml", "--trainer.max_epochs", "1") == 2
    assert words in message(capsys)
