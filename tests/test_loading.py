"""From settings to an engine: what is refused, and when."""

import sys
from pathlib import Path

import pytest

from i2v.errors import ModelUnavailable
from i2v.loading import load_engine
from i2v.settings import Settings


def nothing_said(*_: object) -> None:
    """Nobody looks at the progress here."""


def test_a_folder_that_is_not_there_is_refused_before_the_libraries_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took eight seconds to say so."""
    monkeypatch.setitem(sys.modules, "i2v.engine.engine", None)  # importing it fails
    with pytest.raises(ModelUnavailable, match="nowhere"):
        load_engine(Settings(model=str(tmp_path / "nowhere")), nothing_said)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelUnavailable, match="model_index"):
        load_engine(Settings(model=str(tmp_path / "empty")), nothing_said)
    with pytest.raises(ImportError):
        load_engine(Settings(model="demo"), nothing_said)
