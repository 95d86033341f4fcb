"""Other ecosystems' clients, unmodified, on the dialects that are theirs: a folder each."""
