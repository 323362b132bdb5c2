"""One module per vendor wire format; each translates to and from the records of `conductor.records`."""
