"""The steps of a run, one file each: inputs in, a typed artifact out. heal/loop.py puts them in order."""
