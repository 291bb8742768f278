"""One image file: what its headers say, what decoding it costs, its pixels."""
