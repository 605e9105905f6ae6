"""`run.py train`: its programs, and that the old form still means the built-in model."""

import pytest
from cascadevsr.runner import cli
from cascadevsr.runner.errors import RunnerError
from cascadevsr.runner.train import PROGRAMS, choose


@pytest.mark.parametrize(
    ("typed", "program", "arguments"),
    [
        ("--photos a b", "builtin", ["--photos", "a", "b"]),
        ("-- --photos a", "builtin", ["--photos", "a"]),
        ("builtin --photos a", "builtin", ["--photos", "a"]),
        ("adapter --base x --help", "adapter", ["--base", "x", "--help"]),
        ("ablations", "ablations", []),
        ("", "builtin", []),
    ],
)
def test_options_reach_the_program_they_belong_to(typed, program, arguments):
    options = cli.parser().parse_args(["train", *typed.split()])
    assert choose(options.arguments) == (program, arguments)


def test_other_names_are_refused():
    with pytest.raises(RunnerError, match="train takes builtin, adapter, ablations; got 'vae'"):
        choose(["vae"])


def test_help_needs_no_environment_and_names_all(capsys):
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in PROGRAMS)
