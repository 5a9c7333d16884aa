"""The figures: one file each, a registry of all, and what they share."""
