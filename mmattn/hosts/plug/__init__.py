"""`plug` puts a gate behind any named module of any model. It needs torch alone."""

from .entries import plug_entries
from .plugging import places, plug, unplug
from .targets import Plugged

__all__ = ['Plugged', 'places', 'plug', 'plug_entries', 'unplug']
