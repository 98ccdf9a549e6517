"""Words that several rooms use with one meaning."""

RAW = "reads_raw_files"
"""Tag of nodes that make tables of raw files and parameters alone."""
