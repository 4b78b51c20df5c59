"""The command line as tests use it: what it prints, and the sentence with which it refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from moec.compiler.cli import main


def moec(*arguments: Any) -> Result:
    """The command's result; a traceback is the test's failure."""
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def printed(*arguments: Any) -> Any:
    """What a command that ends well prints as JSON."""
    result = moec(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: Any) -> str:
    """The sentence with which a command refuses."""
    result = moec(*arguments)
    assert result.exit_code == 2, result.output
    assert not result.stdout
    assert "Traceback" not in result.stderr
    *usage, sentence = result.stderr.strip().split("\n\n")
    assert sentence.startswith("Error: " if usage else "moec: ")
    return " ".join(sentence.split())


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder, hidden ones too, with the hash of what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def leaves_alone(folder: Path, *arguments: Any) -> str:
    """The sentence with which a command refuses, having changed nothing below the folder."""
    before = contents(folder)
    sentence = refused(*arguments)
    assert contents(folder) == before
    return sentence
