"""The command-line program `adaexit`."""
