"""The networks that are measured, written by seed: nothing is downloaded."""
