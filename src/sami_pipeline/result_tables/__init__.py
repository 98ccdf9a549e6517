"""Tables of results, one file each; `registry` lists them."""
