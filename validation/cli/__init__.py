"""The command line, `searchphase`."""
