"""What each preset approximates, in one line of both languages: the package's own, or those of the operator's file."""

from collections.abc import Mapping

from i2v.errors import SettingsError
from i2v.notes import say
from i2v.presets import PRESETS, described, read_presets
from i2v.settings import Settings


def sentences(settings: Settings) -> Mapping[str, tuple[str, str]]:
    """English and Chinese by the keys that the form's choices have.

    A file that cannot be read leaves the package's own: loading the model says what is wrong with it.
    """
    try:
        presets = read_presets(settings.presets)
    except SettingsError:
        presets = PRESETS
    notes = {f"preset_{name}": described(name, sampling) for name, sampling in presets.items()}
    return {key: (say(note), say(note, "zh")) for key, note in notes.items()}
