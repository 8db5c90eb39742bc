"""The papers' printed tables as data, and the config behind each number."""

from .tables import PAPERS, Entry, config_name, config_root, entries, load

__all__ = ['PAPERS', 'Entry', 'config_name', 'config_root', 'entries', 'load']
