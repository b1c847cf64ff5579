"""Sentences of errors: one printable line of bounded length, whatever was typed."""

import random

from archsearch.errors import (
    LONGEST_SENTENCE,
    LONGEST_VALUE,
    RunError,
    UserError,
    did_you_mean,
    first_line,
    one_line,
    shown,
)


def test_a_line_is_printable_and_as_short_as_asked() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(
            rng.choices(
                "ab \n\x1b\u202e\udcff", weights=(9, 9, rng.random(), 0.1, 0.1, 0.1, 0.1), k=rng.randint(0, 900)
            )
        )
        most = rng.randint(40, 500)
        line = one_line(text, most)
        assert line.isprintable()
        assert len(line) <= most
        if text.isprintable() and len(text) <= most:
            assert line == text


def test_a_long_sentence_keeps_its_place_and_what_is_allowed() -> None:
    sentence = str(UserError(f"my.toml: name {'x' * 5000} is no name; allowed are short ones"))
    assert sentence.startswith("my.toml: name xxx")
    assert sentence.endswith("xxx is no name; allowed are short ones")
    assert len(sentence) < 200
    many = str(RunError("results/run: " + " ".join(f"word{number}" for number in range(1000)) + "; give it again"))
    assert len(many) == LONGEST_SENTENCE
    assert many.startswith("results/run: word0 word1 ")
    assert many.endswith(" word999; give it again")


def test_control_characters_never_reach_the_terminal() -> None:
    assert str(UserError("a\nb\x1b[2J\u202e\udcff")) == "a\\nb\\x1b[2J\\u202e\\udcff"
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


def test_a_password_is_gone_before_a_sentence_is_cut() -> None:
    address = f"postgresql://user:{'secret' * 40}@host/{'name' * 200}"
    assert "secret" not in str(UserError(f"--storage {address}: no such database"))


def test_a_value_is_shown_as_python_writes_it() -> None:
    assert shown(4) == "4"
    assert shown(float("nan")) == "nan"
    assert shown("a\n") == repr("a\n")
    assert shown(10**5000) == "a number of over 4,300 digits"
    assert shown([10**5000]) == "a list"


def test_a_long_value_is_shortened_and_has_no_near_name() -> None:
    assert len(shown("x" * 10**6)) == LONGEST_VALUE
    assert did_you_mean("hilo" * 10**5, ["hilo"]) == ""
    assert did_you_mean("hillo", iter(["lka", "hilo"])) == ", did you mean 'hilo'?"
