"""The explorer: a local page on which sliders move a problem and everything that theory says of it follows."""
