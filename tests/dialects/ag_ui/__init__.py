"""AG-UI, to the byte: what each event becomes, and what of a request is passed on."""
