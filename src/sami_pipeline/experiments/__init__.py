"""The experiments: one file each, listed in ``registry``."""
