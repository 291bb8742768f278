"""Data sets before training: fetched, unpacked, converted, drawn, split, packed."""
