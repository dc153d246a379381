"""The command `adaexit`."""
