"""A paper's table beside our runs of it: records are collected, judged by fixed rules, rendered."""
